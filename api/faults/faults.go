// Package faults pairs events: a Warning event reports a fault of an object, and a Normal event later reports that the object has recovered.
package faults

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// RecoveryReason is the reason of the event that reports a recovery.
const RecoveryReason = "Ready"

// Tracker has the objects with a reported fault. Its zero value is empty and ready. It is safe for concurrent use. It does not know the faults that
// an earlier process reported: those are in the conditions of the object.
type Tracker struct {
	mu      sync.Mutex // guards objects
	objects map[types.NamespacedName]bool
}

// Add adds an object whose fault an event has reported.
func (t *Tracker) Add(object types.NamespacedName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		t.objects = map[types.NamespacedName]bool{}
	}
	t.objects[object] = true
}

// Remove removes the object, and reports whether it had a reported fault.
func (t *Tracker) Remove(object types.NamespacedName) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	reported := t.objects[object]
	delete(t.objects, object)
	return reported
}

// RecoveryMessage is the message of the recovery event. ready is the message of the condition Ready.
func RecoveryMessage(ready string) string {
	if ready == "served" {
		return "served again"
	}
	return ready
}
