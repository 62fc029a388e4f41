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

// nodesProblem is what is wrong with the nodes' addresses on the hub. It concerns every Service but those of policy Local.
type nodesProblem struct {
	mu      sync.Mutex // guards problem
	problem translate.Problem
	changed chan event.GenericEvent
}

func newNodesProblem() *nodesProblem {
	return &nodesProblem{changed: make(chan event.GenericEvent, 1)}
}

// set replaces the problem; an empty one is none.
func (n *nodesProblem) set(problem translate.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.problem == problem {
		return
	}
	n.problem = problem
	select {
	case n.changed <- event.GenericEvent{Object: &corev1.Node{}}:
	default: // told already, and not yet heard
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

// servicesOfAllNodes are the Services whose targets are the tenant's Addresses: all but those of policy Local.
func (r *serviceReconciler) servicesOfAllNodes(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.servicesOf(ctx, func(policy corev1.ServiceExternalTrafficPolicy) bool {
		return policy != corev1.ServiceExternalTrafficPolicyLocal
	})
}
