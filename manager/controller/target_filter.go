package controller

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/hubhosts"
)

// targetFilter knows which addresses tenants may not target, as of the last refresh, and queues the lists of targets that have to be evaluated again.
type targetFilter struct {
	client client.Client
	// addresses has the external ranges.
	addresses *addressAllocator
	// forbidden are the networks of --forbidden-cidrs.
	forbidden []netip.Prefix
	// nodes: Nodes can be read.
	nodes bool

	refreshing sync.Mutex   // held during a refresh; locked before mu
	mu         sync.RWMutex // guards the fields below
	refreshed  bool
	tenants    map[string]translate.Tenant // by namespace
	owners     *translate.NodeOwners
	hosts      map[netip.Addr]string // replaced as a whole, never changed
	vips       []ipam.Range
	lists      targetLists
}

// with calls do with the filter as of the last refresh. The first call refreshes it. The filter is valid until do returns.
func (f *targetFilter) with(ctx context.Context, do func(translate.TargetFilter)) error {
	if err := f.refreshOnce(ctx); err != nil {
		return err
	}
	external := f.addresses.ranges()
	f.mu.RLock()
	defer f.mu.RUnlock()
	do(f.current(external))
	return nil
}

// current is the filter as of the last refresh, with these external ranges. mu is held as long as the result is used.
func (f *targetFilter) current(external []ipam.Range) translate.TargetFilter {
	return translate.TargetFilter{Forbidden: f.forbidden, VIPs: external, Hosts: f.hosts, NodeOwners: f.owners}
}

func (f *targetFilter) refreshOnce(ctx context.Context) error {
	f.mu.RLock()
	refreshed := f.refreshed
	f.mu.RUnlock()
	if refreshed {
		return nil
	}
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	if f.refreshed { // refreshing is held, which guards writes of this field
		return nil
	}
	return f.refreshLocked(ctx)
}

// refresh reads all Tenants, lists of targets, and hosts.
func (f *targetFilter) refresh(ctx context.Context) error {
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	return f.refreshLocked(ctx)
}

// refreshLocked compares the versions of all objects with those of the last refresh, and reads only the lists that have changed: a tenant may have
// millions of targets.
func (f *targetFilter) refreshLocked(ctx context.Context) error {
	var tenants v1alpha1.TenantList
	var addresses v1alpha1.AddressesList
	var lbs v1alpha1.LoadBalancerList
	for _, list := range []client.ObjectList{&tenants, &addresses, &lbs} {
		if err := f.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("read the targets of tenants: %w", err)
		}
	}
	hosts, err := f.readHosts(ctx)
	if err != nil {
		return err
	}
	external := f.addresses.ranges()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.refreshed {
		f.tenants, f.owners, f.lists = map[string]translate.Tenant{}, translate.NewNodeOwners(), newTargetLists()
	}
	// The lists are updated first: when an address gets another owner, all lists with this address have to be found.
	changed := f.updateAddresses(addresses.Items)
	for i := range lbs.Items {
		lb := &lbs.Items[i]
		if convert.HasOwnTargets(lb) {
			f.lists.update(listKey{client.ObjectKeyFromObject(lb), true}, versionOf(lb), nil, func() []translate.Packed {
				own, local := convert.OwnTargets(lb)
				return []translate.Packed{own, local}
			})
		}
	}
	for _, gone := range f.lists.sweep() {
		if !gone.own {
			changed = append(changed, translate.Addresses{ObjectName: model.ObjectName(gone.ObjectKey)})
		}
	}
	f.updateTenants(tenants.Items)
	for _, a := range changed {
		f.updateList(a)
	}
	f.updateHosts(hosts)
	if !slices.Equal(f.vips, external) {
		f.vips = external
		f.queueAll()
	}
	f.refreshed = true
	return nil
}

func versionOf(o client.Object) string { return string(o.GetUID()) + "/" + o.GetResourceVersion() }

// updateAddresses updates the lists of Addresses objects, and returns those whose list has changed. mu is held.
func (f *targetFilter) updateAddresses(items []v1alpha1.Addresses) (changed []translate.Addresses) {
	for i := range items {
		a := &items[i]
		if f.lists.update(listKey{client.ObjectKeyFromObject(a), false}, versionOf(a), a.Status.Held, func() []translate.Packed {
			return []translate.Packed{translate.Pack(convert.Addresses(a).List)}
		}) {
			changed = append(changed, convert.Addresses(a))
		}
	}
	return changed
}

// updateTenants updates the tenants. mu is held.
func (f *targetFilter) updateTenants(items []v1alpha1.Tenant) {
	present := map[string]bool{}
	for i := range items {
		t := convert.Tenant(&items[i])
		namespace := t.Namespace()
		present[namespace] = true
		before, known := f.tenants[namespace]
		f.tenants[namespace] = t
		switch {
		case f.owners.SetTenant(t):
			f.queueAll()
		case !known || !reflect.DeepEqual(before, t):
			f.queueLists(f.lists.byNamespace[namespace])
		}
	}
	for namespace, t := range f.tenants {
		if !present[namespace] {
			delete(f.tenants, namespace)
			f.owners.DeleteTenant(t.Name)
			f.queueAll()
		}
	}
}

// updateHosts updates the hosts, and queues the lists with an address of a changed host. mu is held.
func (f *targetFilter) updateHosts(hosts map[netip.Addr]string) {
	var changed []netip.Addr
	for address, host := range hosts {
		if f.hosts[address] != host {
			changed = append(changed, address)
		}
	}
	for address := range f.hosts {
		if _, still := hosts[address]; !still {
			changed = append(changed, address)
		}
	}
	f.hosts = hosts
	if searched := f.lists.hasher.Search(changed); len(changed) > 0 {
		for _, of := range f.lists.byNamespace {
			for _, l := range of {
				if len(searched.In(l.mentions)) > 0 {
					f.queueList(l)
				}
			}
		}
	}
}

// tenantAddress is an address in the view of a tenant.
type tenantAddress struct {
	address   netip.Addr
	namespace string
}

// updateList replaces the list of an Addresses object. It queues all other Addresses with a changed address, since the owner of a node that several tenants
// list has to be recorded. LoadBalancers with targets of their own are more: it queues only those for which an address has got another owner. mu is held.
func (f *targetFilter) updateList(a translate.Addresses) {
	by, known := f.tenants[a.Namespace]
	differing := f.owners.ChangedAddresses(a)
	if !f.refreshed || !known || len(differing) == 0 {
		f.owners.SetAddresses(a)
		return
	}
	searched, before := f.lists.hasher.Search(differing), map[tenantAddress]bool{}
	eachRelated := func(do func(namespace string, l *targetList)) {
		for namespace, of := range f.lists.byNamespace {
			if t, is := f.tenants[namespace]; is && t.Network == by.Network {
				for _, l := range of {
					do(namespace, l)
				}
			}
		}
	}
	self := listKey{client.ObjectKey(a.ObjectName), false}
	eachRelated(func(namespace string, l *targetList) {
		mentioned := searched.In(l.mentions)
		if !l.own && l.listKey != self && len(mentioned) > 0 {
			f.queueList(l)
			return
		}
		for _, address := range mentioned {
			before[tenantAddress{address, namespace}] = f.hasOtherOwner(namespace, address)
		}
	})
	f.owners.SetAddresses(a)
	transferred := map[string][]netip.Addr{}
	for at, was := range before {
		if f.hasOtherOwner(at.namespace, at.address) != was {
			transferred[at.namespace] = append(transferred[at.namespace], at.address)
		}
	}
	for namespace, addresses := range transferred {
		searched := f.lists.hasher.Search(addresses)
		for _, l := range f.lists.byNamespace[namespace] {
			if len(searched.In(l.mentions)) > 0 {
				f.queueList(l)
			}
		}
	}
}

func (f *targetFilter) hasOtherOwner(namespace string, address netip.Addr) bool {
	_, is := f.owners.OtherOwner(f.tenants[namespace], address)
	return is
}

func (f *targetFilter) queueAll() {
	for _, of := range f.lists.byNamespace {
		f.queueLists(of)
	}
}

func (f *targetFilter) queueLists(of map[listKey]*targetList) {
	for _, l := range of {
		f.queueList(l)
	}
}

// queueList queues a list because of a change of another object. At the first refresh all lists are new anyway. mu is held.
func (f *targetFilter) queueList(l *targetList) {
	l.affected = l.affected || f.refreshed
	f.lists.enqueue(l)
}

// nextLists returns the next lists to evaluate, and whether more are queued.
func (f *targetFilter) nextLists() ([]listKey, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists.dequeue()
}

// setResult records the result for a list, and reports whether LoadBalancers have to be reconciled.
func (f *targetFilter) setResult(key listKey, refused string, endpoints int) (reconcile bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lists.byNamespace[key.Namespace][key]
	return l != nil && l.setResult(refused, int32(endpoints))
}

// requeue queues a list again.
func (f *targetFilter) requeue(key listKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.lists.byNamespace[key.Namespace][key]; l != nil {
		f.lists.enqueue(l)
	}
}

// endpoints returns the number of endpoints in each list of the namespace, of the family with more. It skips lists that are queued.
func (f *targetFilter) endpoints(namespace string) map[listKey]int32 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := map[listKey]int32{}
	for key, l := range f.lists.byNamespace[namespace] {
		if !l.queued && !l.isNew {
			out[key] = l.endpoints
		}
	}
	return out
}

// tenantOf returns the tenant of the namespace.
func (f *targetFilter) tenantOf(namespace string) (translate.Tenant, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	t, known := f.tenants[namespace]
	return t, known
}

// usedByHosts returns the addresses of the management cluster's hosts and of routers.
func (f *targetFilter) usedByHosts(ctx context.Context) (translate.UsedAddresses, error) {
	used, err := f.readHosts(ctx)
	if err != nil {
		return nil, err
	}
	var peers v1alpha1.BGPPeerList
	if err := f.client.List(ctx, &peers, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("read the BGPPeers: %w", err)
	}
	for i := range peers.Items {
		for _, a := range hubhosts.ParseAddresses([]string{peers.Items[i].Spec.Address}) {
			used[a] = "the router of BGPPeer " + peers.Items[i].Name
		}
	}
	return used, nil
}

// usedByTargets returns the addresses in the ranges that are allowed targets of tenants, with these external ranges.
func (f *targetFilter) usedByTargets(ctx context.Context, external, ranges []ipam.Range) (translate.UsedAddresses, error) {
	if err := f.refresh(ctx); err != nil {
		return nil, err
	}
	var addresses v1alpha1.AddressesList
	var lbs v1alpha1.LoadBalancerList
	for _, list := range []client.ObjectList{&addresses, &lbs} {
		if err := f.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("read the targets of tenants: %w", err)
		}
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return translate.UsedByTargets(targetsOf(addresses.Items, lbs.Items), f.tenants, f.current(external), ranges), nil
}

// targetsOf returns all targets of tenants, in Addresses and in LoadBalancers. It converts one list at a time: all of them together may need more memory
// than there is.
func targetsOf(addresses []v1alpha1.Addresses, lbs []v1alpha1.LoadBalancer) iter.Seq[translate.Addresses] {
	return func(yield func(translate.Addresses) bool) {
		for i := range addresses {
			if !yield(convert.Addresses(&addresses[i])) {
				return
			}
		}
		for i := range lbs {
			if convert.HasOwnTargets(&lbs[i]) && !yield(convert.LoadBalancer(&lbs[i]).OwnTargets()) {
				return
			}
		}
	}
}

// readHosts returns the addresses of gateways and of the management cluster's Nodes, each with the name of its host.
func (f *targetFilter) readHosts(ctx context.Context) (map[netip.Addr]string, error) {
	var gateways v1alpha1.GatewayList
	var nodes corev1.NodeList
	err := f.client.List(ctx, &gateways, client.UnsafeDisableDeepCopy)
	if f.nodes {
		err = errors.Join(err, f.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy))
	}
	if err != nil {
		return nil, fmt.Errorf("read the hosts of the management cluster: %w", err)
	}
	hosts := map[netip.Addr]string{}
	for i := range nodes.Items {
		for _, a := range hubhosts.NodeAddresses(&nodes.Items[i]) {
			hosts[a] = "Node " + nodes.Items[i].Name
		}
	}
	for i := range gateways.Items {
		for _, a := range hubhosts.ParseAddresses(gateways.Items[i].Status.HostAddresses) {
			hosts[a] = "gateway " + gateways.Items[i].Name
		}
	}
	return hosts, nil
}
