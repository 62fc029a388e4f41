// Package faults remembers of which objects an event has told that something is wrong, so that another event tells when it is over: in between
// an object may only wait.
package faults

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// Reason is that of the event that tells the end.
const Reason = "Ready"

// Told are the objects with a fault that was told. Its zero value is ready, and it is safe for concurrent use. A process that has just begun has
// told nothing: what stands in an object's status counts as well.
type Told struct {
	mu      sync.Mutex // guards objects
	objects map[types.NamespacedName]bool
}

// Begin notes that a fault of the object was told.
func (t *Told) Begin(object types.NamespacedName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		t.objects = map[types.NamespacedName]bool{}
	}
	t.objects[object] = true
}

// End forgets the object, and reports whether a fault of it was told.
func (t *Told) End(object types.NamespacedName) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.objects[object]
	delete(t.objects, object)
	return was
}

// Note is what the event says where the condition Ready is True again with a message.
func Note(message string) string {
	if message == "served" {
		return "served again"
	}
	return message
}
