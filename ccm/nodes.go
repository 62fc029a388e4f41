package ccm

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/core/translate"
)

// nodesProblem is a problem with the list of nodes' addresses on the hub. All Services report it, except Services with externalTrafficPolicy Local, which do
// not use the list.
type nodesProblem struct {
	mu      sync.Mutex // guards problem
	problem translate.Problem
	// changed gets an event when the problem changes.
	changed chan event.GenericEvent
}

func newNodesProblem() *nodesProblem {
	return &nodesProblem{changed: make(chan event.GenericEvent, 1)}
}

// set replaces the problem. The zero Problem means that there is none.
func (n *nodesProblem) set(problem translate.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.problem == problem {
		return
	}
	n.problem = problem
	select {
	case n.changed <- event.GenericEvent{Object: &corev1.Node{}}:
	default: // an event is waiting already
	}
}

func (n *nodesProblem) get() []translate.Problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.problem == (translate.Problem{}) {
		return nil
	}
	return []translate.Problem{n.problem}
}

// servicesOfAllNodes returns requests for the Services whose targets are the tenant's Addresses: all except Services with externalTrafficPolicy Local.
func (r *serviceReconciler) servicesOfAllNodes(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.servicesOf(ctx, func(policy corev1.ServiceExternalTrafficPolicy) bool {
		return policy != corev1.ServiceExternalTrafficPolicyLocal
	})
}
