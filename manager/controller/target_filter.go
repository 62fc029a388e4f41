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

// fences are what tenants may not target, as of the last look, and which lists of targets have to be looked at anew for what has changed since.
type fences struct {
	client client.Client
	// addresses tell which are external.
	addresses *addressBook
	// forbidden are the operator's networks.
	forbidden []netip.Prefix
	// nodes: Nodes can be read.
	nodes bool

	looking sync.Mutex   // one look at a time; it comes before mu
	mu      sync.RWMutex // guards those below
	looked  bool
	tenants map[string]translate.Tenant // by namespace
	claims  *translate.Claims
	hosts   map[netip.Addr]string // replaced, and never changed
	vips    []ipam.Range
	lists   lists
}

// with gives the fence as of the last look, which is now if there was none. It holds until do returns.
func (f *fences) with(ctx context.Context, do func(translate.Fence)) error {
	if err := f.lookOnce(ctx); err != nil {
		return err
	}
	external := f.addresses.ranges()
	f.mu.RLock()
	defer f.mu.RUnlock()
	do(f.fence(external))
	return nil
}

// fence is the fence as of the last look, while these ranges are external. mu is held, and as long as the fence is used.
func (f *fences) fence(external []ipam.Range) translate.Fence {
	return translate.Fence{Forbidden: f.forbidden, VIPs: external, Hosts: f.hosts, Claims: f.claims}
}

func (f *fences) lookOnce(ctx context.Context) error {
	f.mu.RLock()
	looked := f.looked
	f.mu.RUnlock()
	if looked {
		return nil
	}
	f.looking.Lock()
	defer f.looking.Unlock()
	if f.looked { // which only who has looking writes
		return nil
	}
	return f.lookNow(ctx)
}

// look takes over who lists which nodes, and which hosts there are.
func (f *fences) look(ctx context.Context) error {
	f.looking.Lock()
	defer f.looking.Unlock()
	return f.lookNow(ctx)
}

// lookNow compares the versions of all objects with those of the last look, and reads the lists that differ. What it costs goes with what has changed: a
// tenant may have millions of targets.
func (f *fences) lookNow(ctx context.Context) error {
	var tenants v1alpha1.TenantList
	var addresses v1alpha1.AddressesList
	var lbs v1alpha1.LoadBalancerList
	for _, list := range []client.ObjectList{&tenants, &addresses, &lbs} {
		if err := f.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("look at what tenants may target: %w", err)
		}
	}
	hosts, err := f.hostsNow(ctx)
	if err != nil {
		return err
	}
	external := f.addresses.ranges()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.looked {
		f.tenants, f.claims, f.lists = map[string]translate.Tenant{}, translate.NewClaims(), newLists()
	}
	// What objects list is noted first, so that what mentions an address is found when the address passes to another tenant.
	differ := f.noteAddresses(addresses.Items)
	for i := range lbs.Items {
		lb := &lbs.Items[i]
		if convert.HasOwnTargets(lb) {
			f.lists.note(listKey{client.ObjectKeyFromObject(lb), true}, versionOf(lb), nil, func() []translate.Packed {
				own, local := convert.OwnTargets(lb)
				return []translate.Packed{own, local}
			})
		}
	}
	for _, gone := range f.lists.sweep() {
		if !gone.own {
			differ = append(differ, translate.Addresses{ObjectName: model.ObjectName(gone.ObjectKey)})
		}
	}
	f.takeTenants(tenants.Items)
	for _, a := range differ {
		f.list(a)
	}
	f.takeHosts(hosts)
	if !slices.Equal(f.vips, external) {
		f.vips = external
		f.askAll()
	}
	f.looked = true
	return nil
}

func versionOf(o client.Object) string { return string(o.GetUID()) + "/" + o.GetResourceVersion() }

// noteAddresses notes what Addresses list, and returns those that list something else than before. mu is held.
func (f *fences) noteAddresses(items []v1alpha1.Addresses) (differ []translate.Addresses) {
	for i := range items {
		a := &items[i]
		if f.lists.note(listKey{client.ObjectKeyFromObject(a), false}, versionOf(a), a.Status.Held, func() []translate.Packed {
			return []translate.Packed{translate.Pack(convert.Addresses(a).List)}
		}) {
			differ = append(differ, convert.Addresses(a))
		}
	}
	return differ
}

// takeTenants takes over what operators let tenants have. mu is held.
func (f *fences) takeTenants(items []v1alpha1.Tenant) {
	there := map[string]bool{}
	for i := range items {
		t := convert.Tenant(&items[i])
		namespace := t.Namespace()
		there[namespace] = true
		before, known := f.tenants[namespace]
		f.tenants[namespace] = t
		switch {
		case f.claims.SetTenant(t):
			f.askAll()
		case !known || !reflect.DeepEqual(before, t):
			f.ask(f.lists.of[namespace])
		}
	}
	for namespace, t := range f.tenants {
		if !there[namespace] {
			delete(f.tenants, namespace)
			f.claims.DeleteTenant(t.Name)
			f.askAll()
		}
	}
}

// takeHosts has what mentions a host that has come or gone looked at anew. mu is held.
func (f *fences) takeHosts(hosts map[netip.Addr]string) {
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
		for _, of := range f.lists.of {
			for _, l := range of {
				if len(searched.In(l.mentions)) > 0 {
					f.askOne(l)
				}
			}
		}
	}
}

// standpoint is a tenant's, by its namespace, towards an address.
type standpoint struct {
	address   netip.Addr
	namespace string
}

// list replaces what an object lists. Addresses that mention what has changed there are looked at anew, since a node that several tenants list has to be on
// record. Of LoadBalancers with targets of their own, of which there are more, those are for which an address has got another owner. mu is held.
func (f *fences) list(a translate.Addresses) {
	by, known := f.tenants[a.Namespace]
	differing := f.claims.Differing(a)
	if !f.looked || !known || len(differing) == 0 {
		f.claims.SetAddresses(a)
		return
	}
	searched, before := f.lists.hasher.Search(differing), map[standpoint]bool{}
	concerned := func(do func(namespace string, l *list)) {
		for namespace, of := range f.lists.of {
			if t, is := f.tenants[namespace]; is && t.Network == by.Network {
				for _, l := range of {
					do(namespace, l)
				}
			}
		}
	}
	self := listKey{client.ObjectKey(a.ObjectName), false}
	concerned(func(namespace string, l *list) {
		mentioned := searched.In(l.mentions)
		if !l.own && l.listKey != self && len(mentioned) > 0 {
			f.askOne(l)
			return
		}
		for _, address := range mentioned {
			before[standpoint{address, namespace}] = f.isAnothers(namespace, address)
		}
	})
	f.claims.SetAddresses(a)
	passed := map[string][]netip.Addr{}
	for at, was := range before {
		if f.isAnothers(at.namespace, at.address) != was {
			passed[at.namespace] = append(passed[at.namespace], at.address)
		}
	}
	for namespace, addresses := range passed {
		searched := f.lists.hasher.Search(addresses)
		for _, l := range f.lists.of[namespace] {
			if len(searched.In(l.mentions)) > 0 {
				f.askOne(l)
			}
		}
	}
}

func (f *fences) isAnothers(namespace string, address netip.Addr) bool {
	_, is := f.claims.Rival(f.tenants[namespace], address)
	return is
}

func (f *fences) askAll() {
	for _, of := range f.lists.of {
		f.ask(of)
	}
}

func (f *fences) ask(of map[listKey]*list) {
	for _, l := range of {
		f.askOne(l)
	}
}

// askOne has a list looked at anew for what has changed elsewhere. At the first look all are new anyway. mu is held.
func (f *fences) askOne(l *list) {
	l.asked = l.asked || f.looked
	f.lists.wait(l)
}

// turn returns the lists that are next to be looked at, and whether more wait.
func (f *fences) turn() ([]listKey, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists.turn()
}

// judged takes over what was found of a list, and tells whether LoadBalancers have to hear of it.
func (f *fences) judged(key listKey, refused string, endpoints int) (tell bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lists.of[key.Namespace][key]
	return l != nil && l.take(refused, int32(endpoints))
}

// again has a list looked at once more.
func (f *fences) again(key listKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.lists.of[key.Namespace][key]; l != nil {
		f.lists.wait(l)
	}
}

// endpoints are how many endpoints a LoadBalancer has by each list of the namespace, of the family that has more. A list that waits is not among them.
func (f *fences) endpoints(namespace string) map[listKey]int32 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := map[listKey]int32{}
	for key, l := range f.lists.of[namespace] {
		if !l.waits && !l.isNew {
			out[key] = l.endpoints
		}
	}
	return out
}

// tenantOf returns the tenant whose namespace it is.
func (f *fences) tenantOf(namespace string) (translate.Tenant, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	t, known := f.tenants[namespace]
	return t, known
}

// usedByHosts are addresses of the management cluster's hosts, and of routers.
func (f *fences) usedByHosts(ctx context.Context) (translate.Used, error) {
	used, err := f.hostsNow(ctx)
	if err != nil {
		return nil, err
	}
	var peers v1alpha1.BGPPeerList
	if err := f.client.List(ctx, &peers, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("look at which routers there are: %w", err)
	}
	for i := range peers.Items {
		for _, a := range hubhosts.Parsed([]string{peers.Items[i].Spec.Address}) {
			used[a] = "the router of BGPPeer " + peers.Items[i].Name
		}
	}
	return used, nil
}

// usedByTargets are addresses in the ranges that tenants target, while the external ones are external.
func (f *fences) usedByTargets(ctx context.Context, external, ranges []ipam.Range) (translate.Used, error) {
	if err := f.look(ctx); err != nil {
		return nil, err
	}
	var addresses v1alpha1.AddressesList
	var lbs v1alpha1.LoadBalancerList
	for _, list := range []client.ObjectList{&addresses, &lbs} {
		if err := f.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("look at what tenants target: %w", err)
		}
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return translate.UsedByTargets(targetsOf(addresses.Items, lbs.Items), f.tenants, f.fence(external), ranges), nil
}

// targetsOf are all targets that tenants name, in Addresses, and in LoadBalancers themselves. They are converted one list after another: all of them
// together may take more memory than there is.
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

// hostsNow reads which hosts the management cluster has, gateways and Nodes, and tells what each address is called.
func (f *fences) hostsNow(ctx context.Context) (map[netip.Addr]string, error) {
	var gateways v1alpha1.GatewayList
	var nodes corev1.NodeList
	err := f.client.List(ctx, &gateways, client.UnsafeDisableDeepCopy)
	if f.nodes {
		err = errors.Join(err, f.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy))
	}
	if err != nil {
		return nil, fmt.Errorf("look at which hosts there are: %w", err)
	}
	hosts := map[netip.Addr]string{}
	for i := range nodes.Items {
		for _, a := range hubhosts.OfNode(&nodes.Items[i]) {
			hosts[a] = "Node " + nodes.Items[i].Name
		}
	}
	for i := range gateways.Items {
		for _, a := range hubhosts.Parsed(gateways.Items[i].Status.HostAddresses) {
			hosts[a] = "gateway " + gateways.Items[i].Name
		}
	}
	return hosts, nil
}
