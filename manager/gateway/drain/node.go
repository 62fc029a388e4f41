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

// cordon is that the gateway's Node is to get nothing new, as before kubectl drain stops its host. The gateway drains then, but only as long as others
// take over: what is meant for pods must not cut off clients.
type cordon struct {
	is bool
	// from is when the gateway drains, zero where there is no reason to.
	from time.Time
}

// A gateway waits between these, by chance, before it drains: of several whose Nodes are cordoned at once each sees the ones that were sooner.
const cordonWaitsAtLeast, cordonWaitsAtMost = time.Second, 10 * time.Second

// drains tells whether the gateway is to drain now, if others replace it.
func (c *cordon) drains(replaced func() bool, now time.Time) bool {
	switch {
	case !c.is || !replaced():
		c.from = time.Time{}
	case c.from.IsZero():
		c.from = now.Add(cordonWaitsAtLeast + rand.N(cordonWaitsAtMost-cordonWaitsAtLeast))
	}
	return !c.from.IsZero() && !now.Before(c.from)
}

// WatchNode says whether the Node is cordoned, each time that it is read. It does not wait for the first read: without the right to read Nodes the
// gateway works all the same.
func WatchNode(ctx context.Context, c cache.Cache, name string, cordoned func(bool)) error {
	informer, err := c.GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Node %s: %w", name, err)
	}
	note := func(o any) {
		if node, ok := o.(*corev1.Node); ok && node.Name == name {
			cordoned(node.Spec.Unschedulable)
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    note,
		UpdateFunc: func(_, o any) { note(o) },
		DeleteFunc: func(o any) {
			if tombstone, is := o.(toolscache.DeletedFinalStateUnknown); is {
				o = tombstone.Obj
			}
			if node, ok := o.(*corev1.Node); ok && node.Name == name {
				cordoned(false)
			}
		},
	})
	return err
}
