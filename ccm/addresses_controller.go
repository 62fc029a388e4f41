package ccm

import (
	"context"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/core/translate"
)

// addressesReconciler keeps Addresses/default on the hub: the addresses of all nodes that may take traffic.
type addressesReconciler struct {
	tenant client.Client
	hub    client.Client
	config Config
}

func withPredicate(p predicate.Predicate) builder.WatchesOption { return builder.WithPredicates(p) }

// setUp: any node wakes up the one object, and so does the object itself when somebody else changes it.
func (r *addressesReconciler) setUp(mgr ctrl.Manager, hub cluster.Cluster) error {
	request := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: r.config.HubNamespace, Name: v1alpha1.DefaultAddressesName}}
	one := func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{request} }
	onHub := func(context.Context, *v1alpha1.Addresses) []reconcile.Request { return []reconcile.Request{request} }
	return ctrl.NewControllerManagedBy(mgr).Named("addresses").
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(one), withPredicate(nodeMatters)).
		WatchesRawSource(source.Kind(hub.GetCache(), &v1alpha1.Addresses{}, handler.TypedEnqueueRequestsFromMapFunc(onHub))).
		Complete(r)
}

// Reconcile writes the object when it differs.
func (r *addressesReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if req.Name != v1alpha1.DefaultAddressesName {
		return reconcile.Result{}, nil
	}
	var list corev1.NodeList
	if err := r.tenant.List(ctx, &list); err != nil {
		return reconcile.Result{}, err
	}
	nodes := make([]translate.Node, len(list.Items))
	for i := range list.Items {
		nodes[i] = convert.Node(&list.Items[i])
	}
	spec := v1alpha1.AddressesSpec{Addresses: convert.Addresses(r.config.resolve(ctx, translate.NodeAddresses(nodes, r.config.NodeAddressType)))}
	if len(spec.Addresses) == 0 {
		log.FromContext(ctx).Info("no eligible node has an address of the wished type: connections will be refused",
			"nodes", len(nodes), "node-address-type", r.config.NodeAddressType)
	}
	var current v1alpha1.Addresses
	err := r.hub.Get(ctx, req.NamespacedName, &current)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, r.hub.Create(ctx, &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: req.Namespace, Name: req.Name}, Spec: spec})
	}
	if err != nil || equality.Semantic.DeepEqual(current.Spec, spec) {
		return reconcile.Result{}, err
	}
	current.Spec = spec
	return reconcile.Result{}, r.hub.Update(ctx, &current)
}

// resolve turns host names into addresses: the hub never resolves a tenant's names. A name that does not resolve is
// passed on as it is, and the hub says so.
func (c Config) resolve(ctx context.Context, list []translate.Address) []translate.Address {
	out := []translate.Address{}
	for _, a := range list {
		if a.IP != "" || c.Resolver == nil {
			out = append(out, a)
			continue
		}
		ips, err := c.Resolver.LookupNetIP(ctx, "ip", a.Hostname)
		if err != nil {
			log.FromContext(ctx).Error(err, "resolve node name", "name", a.Hostname)
			out = append(out, a)
			continue
		}
		slices.SortFunc(ips, netip.Addr.Compare)
		for _, ip := range ips {
			out = append(out, translate.Address{IP: ip.Unmap().String()})
		}
	}
	return out
}
