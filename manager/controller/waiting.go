package controller

import (
	"slices"
	"strings"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// waiting has the LoadBalancers that wait. The reconciler and the event handlers share it.
type waiting struct {
	mu sync.Mutex // guards the maps
	// gateway: waits until a gateway has applied this version. address: waits for a free address.
	gateway map[client.ObjectKey]string
	address map[client.ObjectKey]bool
}

func (w *waiting) setForGateway(lb *v1alpha1.LoadBalancer, waits bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !waits {
		delete(w.gateway, client.ObjectKeyFromObject(lb))
		return
	}
	w.gateway[client.ObjectKeyFromObject(lb)] = lb.ResourceVersion
}

func (w *waiting) setForAddress(key client.ObjectKey, waits bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if waits {
		w.address[key] = true
	} else {
		delete(w.address, key)
	}
}

// reported requests the LoadBalancers that wait for a gateway and may stop: the gateway has applied their version, or it applies no changes.
func (w *waiting) reported(g *v1alpha1.Gateway) []reconcile.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []reconcile.Request
	for key, version := range w.gateway {
		if atLeast(appliedIn(g, key.Namespace), version) || problemOf(g) != "" {
			out = append(out, reconcile.Request{NamespacedName: key})
		}
	}
	return out
}

func (w *waiting) waitingForAddress() []reconcile.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []reconcile.Request
	for key := range w.address {
		out = append(out, reconcile.Request{NamespacedName: key})
	}
	return out
}

// failing requests the LoadBalancers that the gateway lists as failing: its dataplane refuses them, or connections to them fail. controller-runtime calls
// it with the gateway before and after a change.
func failing(g *v1alpha1.Gateway) (out []reconcile.Request) {
	failures := g.Status.Failures
	if g.Status.Tries != nil {
		failures = slices.Concat(failures, g.Status.Tries.Failures)
	}
	for _, f := range failures {
		if namespace, name, found := strings.Cut(f.LoadBalancer, "/"); found {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: namespace, Name: name}})
		}
	}
	return out
}
