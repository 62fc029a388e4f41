package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/hubhosts"
)

// watch makes informers send the loop every change. The returned function reports whether all first lists were read.
func (g *Gateway) watch(ctx context.Context) (func() bool, error) {
	var registered []toolscache.ResourceEventHandlerRegistration
	type watched struct {
		object client.Object
		change func(client.Object, bool) event
	}
	all := []watched{
		{&v1alpha1.Tenant{}, tenantChanged},
		{&v1alpha1.AddressPool{}, poolChanged},
		{&v1alpha1.Gateway{}, gatewayChanged},
		{&v1alpha1.Addresses{}, addressesChanged},
		{&v1alpha1.LoadBalancer{}, loadBalancerChanged},
	}
	if g.options.Nodes {
		all = append(all, watched{&corev1.Node{}, nodeChanged})
	}
	if g.routers != nil {
		all = append(all, watched{&v1alpha1.BGPPeer{}, peerChanged})
	}
	for _, w := range all {
		informer, err := g.cache.GetInformer(ctx, w.object)
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", w.object, err)
		}
		send := func(o any, gone bool) {
			if tombstone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = tombstone.Obj
			}
			if object, ok := o.(client.Object); ok {
				g.send(ctx, w.change(object, gone))
			}
		}
		registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(o any) { send(o, false) },
			UpdateFunc: func(before, o any) {
				// The status of gateways changes all the time, and other gateways do not need most of it.
				if former, ok := before.(*v1alpha1.Gateway); ok && samePublicState(former, o.(*v1alpha1.Gateway)) {
					if current := o.(*v1alpha1.Gateway); !sameTries(former, current) {
						g.send(ctx, triesChanged(current, false))
					}
					return
				}
				send(o, false)
			},
			DeleteFunc: func(o any) { send(o, true) },
		})
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", w.object, err)
		}
		registered = append(registered, registration)
	}
	return func() bool {
		return !slices.ContainsFunc(registered, func(r toolscache.ResourceEventHandlerRegistration) bool { return !r.HasSynced() })
	}, nil
}

func samePublicState(a, b *v1alpha1.Gateway) bool {
	return maps.Equal(a.Labels, b.Labels) && a.Generation == b.Generation && slices.Equal(a.Status.HostAddresses, b.Status.HostAddresses)
}

func tenantChanged(o client.Object, gone bool) event {
	return func(g *Gateway) {
		if gone || o.GetDeletionTimestamp() != nil {
			g.hub.DeleteTenant(o.GetName())
			return
		}
		g.hub.SetTenant(convert.Tenant(o.(*v1alpha1.Tenant)))
	}
}

// poolChanged: if the addresses of an AddressPool are invalid, the former ones stay, so that a typing error moves no address to other gateways.
func poolChanged(o client.Object, gone bool) event {
	return func(g *Gateway) {
		if name := o.GetName(); gone {
			delete(g.pools, name)
			delete(g.externalRanges, name)
			g.selection.DeleteAddressPool(name)
		} else {
			if pool, err := convert.Pool(o.(*v1alpha1.AddressPool)); err == nil {
				g.pools[name] = pool
			}
			g.externalRanges[name] = convert.ExternalRanges(o.(*v1alpha1.AddressPool))
			g.selection.SetAddressPool(name, g.pools[name].Ranges, o.(*v1alpha1.AddressPool).Spec.GatewaySelector)
		}
		filter := translate.TargetFilter{Forbidden: g.options.Forbidden}
		for _, name := range slices.Sorted(maps.Keys(g.externalRanges)) {
			filter.VIPs = append(filter.VIPs, g.externalRanges[name]...)
		}
		g.hub.SetTargetFilter(filter)
	}
}

func gatewayChanged(o client.Object, gone bool) event {
	return func(g *Gateway) {
		if g.routers != nil {
			g.routers.Refresh()
		}
		triesChanged(o.(*v1alpha1.Gateway), gone)(g)
		if o.GetName() == g.options.Name {
			g.drain.Request(!gone && o.(*v1alpha1.Gateway).Spec.Draining)
			g.serving.ReadFormer(o.(*v1alpha1.Gateway).Status.Conditions)
		}
		if gone {
			g.selection.DeleteGateway(o.GetName())
			g.hosts.set("gateway "+o.GetName(), nil)
			return
		}
		g.selection.SetGateway(o.GetName(), o.GetLabels())
		// This gateway knows its own addresses better.
		if o.GetName() != g.options.Name {
			g.hosts.set("gateway "+o.GetName(), hubhosts.ParseAddresses(o.(*v1alpha1.Gateway).Status.HostAddresses))
		}
	}
}

func peerChanged(client.Object, bool) event {
	return func(g *Gateway) { g.routers.Refresh() }
}

func addressesChanged(o client.Object, gone bool) event {
	return func(g *Gateway) {
		a := convert.Addresses(o.(*v1alpha1.Addresses))
		if gone {
			g.hub.DeleteAddresses(a.ObjectName)
			return
		}
		g.hub.SetAddresses(a)
	}
}

// loadBalancerChanged: a LoadBalancer that is being deleted is not served any more, so that its address becomes free.
func loadBalancerChanged(o client.Object, gone bool) event {
	return func(g *Gateway) {
		lb := convert.LoadBalancer(o.(*v1alpha1.LoadBalancer))
		if version, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64); err == nil {
			g.seenVersion = max(g.seenVersion, version)
		}
		if gone || o.GetDeletionTimestamp() != nil {
			g.hub.DeleteLoadBalancer(lb.ObjectName)
			if gone {
				g.selection.SetAllocations(lb.ObjectName.String(), nil)
			}
			return
		}
		g.selection.SetAllocations(lb.ObjectName.String(), convert.Allocations(o.(*v1alpha1.LoadBalancer)))
		g.hub.SetLoadBalancer(lb)
	}
}
