package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// cordon is that the gateway's Node is to get nothing new, as before kubectl drain has its host go down. The gateway lets go of its
// addresses then, but only as long as others take over: what is meant for pods is not to cut off clients.
type cordon struct {
	is bool
	// from is when it lets go; zero where there is no reason to.
	from time.Time
}

// A gateway waits between these, by chance, before it lets go: of several whose Nodes are cordoned at once each sees those that were sooner.
const cordonWaitsAtLeast, cordonWaitsAtMost = time.Second, 10 * time.Second

// wishes tells whether the gateway is to let go of its addresses now, if others replace it.
func (c *cordon) wishes(replaced func() bool, now time.Time) bool {
	switch {
	case !c.is || !replaced():
		c.from = time.Time{}
	case c.from.IsZero():
		c.from = now.Add(cordonWaitsAtLeast + rand.N(cordonWaitsAtMost-cordonWaitsAtLeast))
	}
	return !c.from.IsZero() && !now.Before(c.from)
}

// watchNode takes note when the Node is cordoned. It is not waited for: without the right to read it the gateway works all the same.
func (g *Gateway) watchNode(ctx context.Context) error {
	informer, err := g.cache.GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Node %s: %w", g.options.DrainWithNode, err)
	}
	note := func(o any) {
		if node, ok := o.(*corev1.Node); ok && node.Name == g.options.DrainWithNode {
			g.send(ctx, func(g *Gateway) { g.cordon.is = node.Spec.Unschedulable })
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    note,
		UpdateFunc: func(_, o any) { note(o) },
		DeleteFunc: func(o any) {
			if tombstone, is := o.(toolscache.DeletedFinalStateUnknown); is {
				o = tombstone.Obj
			}
			if node, ok := o.(*corev1.Node); ok && node.Name == g.options.DrainWithNode {
				g.send(ctx, func(g *Gateway) { g.cordon.is = false })
			}
		},
	})
	return err
}
