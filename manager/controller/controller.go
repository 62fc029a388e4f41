// Package controller is the manager's elected role: Tenants and their credentials, the allocation of addresses, and all of
// LoadBalancer status, aggregated from what gateways report of themselves.
package controller

import (
	"errors"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"kubelb.k8c.io/api/v1alpha1"
)

// Options are what the controllers need to know.
type Options struct {
	// APIServer and APIServerCA are how the tenants' CCMs reach the hub.
	APIServer   string
	APIServerCA []byte
	// Namespace is where the gateways' Leases are.
	Namespace string
	// Forbidden are networks of the hub that no tenant may target.
	Forbidden []netip.Prefix
	// Nodes: the management cluster's can be read; no tenant may target them either.
	Nodes bool
	// ServiceAccount is that of the manager, in Namespace, which gives itself its rights in each tenant's namespace by it; empty if its
	// credentials have them anyway.
	ServiceAccount string
	// TokenLifetime is how long tokens of tenants' CCMs last; 0 is for ever.
	TokenLifetime time.Duration
	// Metrics takes what Prometheus is told; nil for nobody.
	Metrics prometheus.Registerer
}

// Cached is what the cache is to hold of kinds that others use as well: the namespaces of tenants.
func Cached() map[client.Object]cache.ByObject {
	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedByKubeLB})}
	return map[client.Object]cache.ByObject{&corev1.Namespace{}: ours}
}

// SetUp adds the controllers: Tenants make namespaces and Secrets; AddressPools and LoadBalancers make allocations;
// LoadBalancers and Gateways make status.
func SetUp(mgr ctrl.Manager, o Options) error {
	book := &addressBook{reader: mgr.GetAPIReader()}
	limits := &fences{client: mgr.GetClient(), addresses: book, forbidden: o.Forbidden, nodes: o.Nodes}
	book.used = limits
	gatewaysSilent := make(chan event.GenericEvent, 1)
	heard := &presence{client: mgr.GetClient(), reader: mgr.GetAPIReader(), namespace: o.Namespace, changed: gatewaysSilent, log: mgr.GetLogger()}
	if err := mgr.Add(heard); err != nil {
		return err
	}
	numbers, err := newMetrics(o.Metrics)
	if err != nil {
		return err
	}
	tenantsTold := make(chan event.GenericEvent)
	ccms := &contacts{client: mgr.GetClient(), reader: mgr.GetAPIReader(), changed: tenantsTold, log: mgr.GetLogger(), metrics: numbers}
	if err := mgr.Add(ccms); err != nil {
		return err
	}
	tenants := &tenantReconciler{client: mgr.GetClient(), reader: mgr.GetAPIReader(), addresses: book, fences: limits, namespace: o.Namespace,
		credentials: credentials{server: o.APIServer, ca: o.APIServerCA, lifetime: o.TokenLifetime}, presence: heard, contacts: ccms, told: tenantsTold}
	if o.ServiceAccount != "" {
		tenants.self = &types.NamespacedName{Namespace: o.Namespace, Name: o.ServiceAccount}
		if err := mgr.Add(&confinement{client: mgr.GetClient(), reader: mgr.GetAPIReader(), log: mgr.GetLogger(), metrics: numbers, said: map[string]string{}}); err != nil {
			return err
		}
	}
	poolsChanged, targetsChanged := make(chan event.GenericEvent, 1), make(chan event.GenericEvent)
	pools := &poolReconciler{client: mgr.GetClient(), addresses: book, changed: poolsChanged, metrics: numbers, nodes: o.Nodes}
	lbs := &loadBalancerReconciler{client: mgr.GetClient(), events: mgr.GetEventRecorder("kubelb-manager"), fences: limits, reader: mgr.GetAPIReader(), namespace: o.Namespace,
		presence: heard, gatewaysSilent: gatewaysSilent, addresses: book, poolsChanged: poolsChanged, targetsChanged: targetsChanged, metrics: numbers,
		waiting: waiting{gateway: map[client.ObjectKey]string{}, address: map[client.ObjectKey]bool{}}, pace: newPace()}
	targets := &targetReconciler{client: mgr.GetClient(), fences: limits, changed: targetsChanged, tenants: tenantsTold}
	return errors.Join(tenants.setUp(mgr), pools.setUp(mgr), targets.setUp(mgr), lbs.setUp(mgr))
}
