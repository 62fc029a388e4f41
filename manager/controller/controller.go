// Package controller has the controllers, the elected role of the manager: Tenants and their credentials, the allocation of addresses, and
// the status of LoadBalancers, which combines the reports of all gateways.
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

// Options configure the controllers.
type Options struct {
	// APIServer and APIServerCA are the URL of the hub's API server for tenants' CCMs, and its CA.
	APIServer   string
	APIServerCA []byte
	// Namespace is the namespace of the gateways' Leases.
	Namespace string
	// Forbidden are networks of the hub that no tenant may target.
	Forbidden []netip.Prefix
	// Nodes: the Nodes of the management cluster can be read. No tenant may target them.
	Nodes bool
	// ServiceAccount is the manager's service account in Namespace. The controllers bind a role in each tenant's namespace to it. Empty if
	// their credentials have these rights anyway.
	ServiceAccount string
	// TokenLifetime is how long tokens of tenants' CCMs last. 0 means that they do not expire.
	TokenLifetime time.Duration
	// Metrics registers the metrics. It may be nil.
	Metrics prometheus.Registerer
}

// Cached configures the cache for kinds that other programs use as well: it holds only the namespaces of tenants.
func Cached() map[client.Object]cache.ByObject {
	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedByKubeLB})}
	return map[client.Object]cache.ByObject{&corev1.Namespace{}: ours}
}

// SetUp adds the controllers. They reconcile Tenants to namespaces and Secrets, AddressPools and LoadBalancers to allocations, and LoadBalancers and
// Gateways to status.
func SetUp(mgr ctrl.Manager, o Options) error {
	addresses := &addressAllocator{reader: mgr.GetAPIReader()}
	filter := &targetFilter{client: mgr.GetClient(), addresses: addresses, forbidden: o.Forbidden, nodes: o.Nodes}
	addresses.used = filter
	gatewaysSilent := make(chan event.GenericEvent, 1)
	gateways := &gatewayMonitor{client: mgr.GetClient(), reader: mgr.GetAPIReader(), namespace: o.Namespace, changed: gatewaysSilent, log: mgr.GetLogger()}
	if err := mgr.Add(gateways); err != nil {
		return err
	}
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return err
	}
	tenantsChanged := make(chan event.GenericEvent)
	ccms := &ccmMonitor{client: mgr.GetClient(), reader: mgr.GetAPIReader(), changed: tenantsChanged, log: mgr.GetLogger(), metrics: m}
	if err := mgr.Add(ccms); err != nil {
		return err
	}
	tenants := &tenantReconciler{client: mgr.GetClient(), reader: mgr.GetAPIReader(), addresses: addresses, filter: filter, namespace: o.Namespace,
		credentials: credentials{server: o.APIServer, ca: o.APIServerCA, lifetime: o.TokenLifetime}, gateways: gateways, ccms: ccms, changed: tenantsChanged}
	if o.ServiceAccount != "" {
		tenants.self = &types.NamespacedName{Namespace: o.Namespace, Name: o.ServiceAccount}
		if err := mgr.Add(&policyChecker{client: mgr.GetClient(), reader: mgr.GetAPIReader(), log: mgr.GetLogger(), metrics: m, logged: map[string]string{}}); err != nil {
			return err
		}
	}
	poolsChanged, targetsChanged := make(chan event.GenericEvent, 1), make(chan event.GenericEvent)
	pools := &poolReconciler{client: mgr.GetClient(), addresses: addresses, changed: poolsChanged, metrics: m, nodes: o.Nodes}
	lbs := &loadBalancerReconciler{client: mgr.GetClient(), events: mgr.GetEventRecorder("kubelb-manager"), filter: filter, reader: mgr.GetAPIReader(), namespace: o.Namespace,
		gateways: gateways, gatewaysSilent: gatewaysSilent, addresses: addresses, poolsChanged: poolsChanged, targetsChanged: targetsChanged, metrics: m,
		waiting: waiting{gateway: map[client.ObjectKey]string{}, address: map[client.ObjectKey]bool{}}, throttle: newStatusThrottle()}
	targets := &targetReconciler{client: mgr.GetClient(), filter: filter, changed: targetsChanged, tenants: tenantsChanged}
	return errors.Join(tenants.setUp(mgr), pools.setUp(mgr), targets.setUp(mgr), lbs.setUp(mgr))
}
