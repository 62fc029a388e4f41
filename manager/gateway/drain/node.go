package drain

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// cordon is the state of the gateway's Node. A cordoned Node gets nothing new, as before kubectl drain and a stop of its host. The gateway then
// drains, but only as long as peers take over: an action that is meant for pods must not cut off clients.
type cordon struct {
	cordoned bool
	// drainAt is when the drain begins, zero while there is no reason for it.
	drainAt time.Time
}

// A gateway waits for a random time between these bounds before it drains. So of several gateways with cordoned Nodes each sees which ones drain
// already.
const minCordonWait, maxCordonWait = time.Second, 10 * time.Second

// shouldDrain reports whether the gateway is to drain now. replaced reports whether peers may answer for all its addresses.
func (c *cordon) shouldDrain(replaced func() bool, now time.Time) bool {
	switch {
	case !c.cordoned || !replaced():
		c.drainAt = time.Time{}
	case c.drainAt.IsZero():
		c.drainAt = now.Add(minCordonWait + rand.N(maxCordonWait-minCordonWait))
	}
	return !c.drainAt.IsZero() && !now.Before(c.drainAt)
}

// WatchNode calls cordoned with the state of the Node each time that the Node is read. It does not wait for the first read: a gateway without the
// right to read Nodes works all the same.
func WatchNode(ctx context.Context, c cache.Cache, name string, cordoned func(bool)) error {
	informer, err := c.GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Node %s: %w", name, err)
	}
	report := func(o any) {
		if node, ok := o.(*corev1.Node); ok && node.Name == name {
			cordoned(node.Spec.Unschedulable)
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    report,
		UpdateFunc: func(_, o any) { report(o) },
		DeleteFunc: func(o any) {
			if tombstone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = tombstone.Obj
			}
			if node, ok := o.(*corev1.Node); ok && node.Name == name {
				cordoned(false)
			}
		},
	})
	return err
}
