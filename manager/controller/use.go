package controller

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/convert"
)

// usage returns the use of the tenant's limits.
func (r *tenantReconciler) usage(ctx context.Context, tenant *v1alpha1.Tenant) (*v1alpha1.TenantUse, error) {
	has := r.addresses.countOf(namespaceOf(tenant))
	used := &v1alpha1.TenantUse{LoadBalancers: has.LoadBalancers, Addresses: has.Addresses, Ports: has.Ports}
	limits := tenant.Spec.Limits
	if limits.EndpointsPerLoadBalancer != nil {
		most, known, err := r.mostEndpoints(ctx, tenant)
		if err != nil {
			return nil, err
		}
		if used.EndpointsPerLoadBalancer = &most; !known {
			used.EndpointsPerLoadBalancer = nil
			if before := tenant.Status.Used; before != nil {
				used.EndpointsPerLoadBalancer = before.EndpointsPerLoadBalancer
			}
		}
	}
	if limits.ConnectionsPerPort == nil && limits.NewConnectionsPerSecondPerPort == nil {
		return used, nil
	}
	var gateways v1alpha1.GatewayList
	if err := r.client.List(ctx, &gateways); err != nil {
		return nil, fmt.Errorf("read the Gateways: %w", err)
	}
	silent, err := r.gateways.silent(ctx)
	if err != nil {
		return nil, err
	}
	gateways.Items = slices.DeleteFunc(gateways.Items, func(g v1alpha1.Gateway) bool { return silent[g.Name] != "" })
	if limits.ConnectionsPerPort != nil {
		used.ConnectionsPerPort = highest(gateways.Items, tenant.Name, func(u v1alpha1.GatewayTenantUse) *int32 { return u.ConnectionsPerPort })
	}
	if limits.NewConnectionsPerSecondPerPort != nil {
		used.NewConnectionsPerSecondPerPort = highest(gateways.Items, tenant.Name, func(u v1alpha1.GatewayTenantUse) *int32 { return u.NewConnectionsPerSecondPerPort })
	}
	return used, nil
}

// highest returns the highest value that a gateway reports for the tenant; nil if none reports one.
func highest(gateways []v1alpha1.Gateway, tenant string, of func(v1alpha1.GatewayTenantUse) *int32) (highest *int32) {
	for _, g := range gateways {
		for _, u := range g.Status.Tenants {
			if n := of(u); u.Tenant == tenant && n != nil && (highest == nil || *n > *highest) {
				highest = n
			}
		}
	}
	return highest
}

// mostEndpoints returns the number of endpoints of one family of the LoadBalancer with the most. The evaluation of lists counts them. known is false while
// a list is queued; after its evaluation the Tenant is reconciled again.
func (r *tenantReconciler) mostEndpoints(ctx context.Context, tenant *v1alpha1.Tenant) (most int32, known bool, err error) {
	var shared v1alpha1.AddressesList
	var lbs v1alpha1.LoadBalancerList
	for _, list := range []client.ObjectList{&shared, &lbs} {
		if err := r.client.List(ctx, list, client.InNamespace(namespaceOf(tenant)), client.UnsafeDisableDeepCopy); err != nil {
			return 0, false, fmt.Errorf("count the endpoints of Tenant %s: %w", tenant.Name, err)
		}
	}
	there := map[listKey]bool{}
	for i := range shared.Items {
		there[listKey{client.ObjectKeyFromObject(&shared.Items[i]), false}] = true
	}
	counted := r.filter.endpoints(namespaceOf(tenant))
	known = true
	for i := range lbs.Items {
		key, own := endpointsOf(&lbs.Items[i])
		n, is := counted[key]
		most, known = max(most, n), known && (is || !own && !there[key])
	}
	return min(most, *tenant.Spec.Limits.EndpointsPerLoadBalancer), known, nil
}

// endpointsOf returns the key of the list of a LoadBalancer's endpoints. own: the list is in the LoadBalancer itself, and is not empty.
func endpointsOf(lb *v1alpha1.LoadBalancer) (key listKey, own bool) {
	key = listKey{client.ObjectKeyFromObject(lb), true}
	if len(lb.Spec.Endpoints) == 0 {
		return key, false
	}
	if reference := lb.Spec.Endpoints[0].AddressesReference; reference != nil {
		key.own, key.Name = false, reference.Name
		return key, false
	}
	addresses, _ := convert.OwnTargets(lb)
	return key, addresses != ""
}

// tenantUseHandler requests the Tenants whose use at a gateway has changed.
func tenantUseHandler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	ask := func(q queue, before, now client.Object) {
		for _, name := range differing(before, now) {
			q.Add(reconcile.Request{NamespacedName: client.ObjectKey{Name: name}})
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { ask(q, nil, e.Object) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { ask(q, e.ObjectOld, e.ObjectNew) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { ask(q, e.Object, nil) },
	}
}

// differing returns the names of the tenants whose use differs between the two Gateways.
func differing(before, now client.Object) (names []string) {
	uses := func(o client.Object) map[string]v1alpha1.GatewayTenantUse {
		of := map[string]v1alpha1.GatewayTenantUse{}
		if g, is := o.(*v1alpha1.Gateway); is {
			for _, u := range g.Status.Tenants {
				of[u.Tenant] = u
			}
		}
		return of
	}
	was, is := uses(before), uses(now)
	for name, u := range is {
		if w, there := was[name]; !there || !equality.Semantic.DeepEqual(w, u) {
			names = append(names, name)
		}
	}
	for name := range was {
		if _, there := is[name]; !there {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
