package translate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"kubelb.k8c.io/core/model"
)

// A gateway's loop handles writes of Addresses and the election. A tenant that writes its list again and again must not stop it.
func TestTheCostOfAWriteOfAddressesDoesNotDependOnUnaffectedTenants(t *testing.T) {
	allocations := func(tenants int) float64 {
		h := NewTranslator()
		for i := range tenants {
			h.SetTenant(Tenant{Name: fmt.Sprint(i), BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		}
		for i := range tenants {
			namespace, node := fmt.Sprintf("tenant-%d", i), fmt.Sprintf("10.200.%d.%d", i/250, i%250)
			h.SetAddresses(addressesOf(namespace, node))
			h.SetLoadBalancer(lb(namespace, "own", inlineTarget(node)))
		}
		h.Flush()
		lists, n := [2]Addresses{}, 0
		for second := range lists {
			lists[second].ObjectName = model.ObjectName{Namespace: "tenant-0", Name: "more"}
			for i := range MaxTargets {
				lists[second].List = append(lists[second].List, Address{IP: fmt.Sprintf("10.%d.%d.%d", second, i/250, i%250)})
			}
		}
		return testing.AllocsPerRun(4, func() {
			h.SetAddresses(lists[n%2])
			n++
		})
	}
	few, many := allocations(3), allocations(300)
	t.Logf("%g allocations with 3 tenants, %g with 300", few, many)
	if many > few*11/10 {
		t.Errorf("a write takes %g allocations with 3 tenants, and %g with 300", few, many)
	}
}

func TestTheCostOfASearchDependsOnTheShorterList(t *testing.T) {
	h, addresses := NewAddressHasher(), []netip.Addr{}
	for a := netip.MustParseAddr("10.0.0.0"); len(addresses) < MaxTargets; a = a.Next() {
		addresses = append(addresses, a)
	}
	list := func(of []netip.Addr) AddressHashes {
		return h.Hashes(func(do func(netip.Addr)) {
			for _, address := range of {
				do(address)
			}
		})
	}
	took := func(searched, listed []netip.Addr) time.Duration {
		s, l := h.Search(searched), list(listed)
		least := time.Hour
		for range 10 {
			began := time.Now()
			for range 1000 {
				if len(s.In(l)) < 3 {
					t.Fatal("an address is not found")
				}
			}
			least = min(least, time.Since(began))
		}
		return least
	}
	three := []netip.Addr{addresses[0], addresses[1000], addresses[MaxTargets-1]}
	if short, long := took(addresses, three), took(three, addresses); short > 10*long {
		t.Errorf("5,000 addresses in a list of 3 take %s, 3 in a list of 5,000 %s", short, long)
	}
}

// world has the objects of a hub, which change in random order.
type world struct {
	random    *rand.Rand
	tenants   map[string]Tenant
	addresses map[model.ObjectName]Addresses
	lbs       map[model.ObjectName]LoadBalancer
	hosts     map[netip.Addr]string
}

func (w *world) name(of int) model.ObjectName {
	return model.ObjectName{Namespace: fmt.Sprintf("tenant-%d", w.random.IntN(4)), Name: fmt.Sprint(w.random.IntN(of))}
}

// list returns addresses of a small set, so that tenants list the same ones, in all notations.
func (w *world) list() []Address {
	list := []Address{}
	for range w.random.IntN(5) {
		texts := []string{"10.0.0.%d", "10.0.0.%d", "10.0.0.%d", "::ffff:10.0.0.%d", "fd00::%d", "fd00:0::%d", "fd00::%d%%e", "node%d"}
		list = append(list, Address{IP: fmt.Sprintf(texts[w.random.IntN(len(texts))], w.random.IntN(6))})
	}
	return list
}

// change makes a random change.
func (w *world) change(h *Translator) {
	switch w.random.IntN(16) {
	case 0, 1:
		tenant := Tenant{Name: fmt.Sprint(w.random.IntN(4)), Created: int64(w.random.IntN(3)), Network: []string{"", "", "", "", "site-2"}[w.random.IntN(5)]}
		for _, prefix := range []string{"10.0.0.0/8", "10.0.0.0/30", "10.0.0.2/32", "fd00::/16", "fd00::1/128"} {
			if w.random.IntN(2) == 0 {
				tenant.BackendCIDRs = append(tenant.BackendCIDRs, netip.MustParsePrefix(prefix))
			}
		}
		w.tenants[tenant.Name] = tenant
		h.SetTenant(tenant)
	case 2:
		name := fmt.Sprint(w.random.IntN(4))
		delete(w.tenants, name)
		h.DeleteTenant(name)
	case 3, 4, 5, 6, 7:
		a := Addresses{ObjectName: w.name(2), List: w.list()}
		eachAddress(a.List, func(address netip.Addr) {
			if w.random.IntN(3) == 0 {
				a.Held = append(a.Held, address)
			}
		})
		w.addresses[a.ObjectName] = a
		h.SetAddresses(a)
	case 8:
		name := w.name(2)
		delete(w.addresses, name)
		h.DeleteAddresses(name)
	case 9:
		name := w.name(3)
		delete(w.lbs, name)
		h.DeleteLoadBalancer(name)
	case 10:
		w.hosts = map[netip.Addr]string{}
		if w.random.IntN(2) == 0 {
			w.hosts[netip.AddrFrom4([4]byte{10, 0, 0, byte(w.random.IntN(6))})] = "gateway g"
		}
		h.SetHosts(w.hosts)
	default:
		l := w.loadBalancer()
		w.lbs[l.ObjectName] = l
		if w.random.IntN(2) == 0 {
			l = l.packed()
		}
		h.SetLoadBalancer(l)
	}
}

func (w *world) loadBalancer() LoadBalancer {
	l := lb("", "", vips(fmt.Sprintf("203.0.113.%d", w.random.IntN(4)), fmt.Sprintf("2001:db8::%d", 1+w.random.IntN(4))))
	l.ObjectName, l.Addresses, l.Reference = w.name(3), w.list(), nil
	if w.random.IntN(2) == 0 {
		l.Reference = &model.ObjectName{Name: fmt.Sprint(w.random.IntN(2))}
	}
	if w.random.IntN(2) == 0 {
		list := w.list()
		l.Local, l.LocalOnly = &list, w.random.IntN(2) == 0
	}
	return l
}

// hub returns a hub to which each object was added once.
func (w *world) hub() *Translator {
	h := NewTranslator()
	h.SetHosts(w.hosts)
	for _, t := range w.tenants {
		h.SetTenant(t)
	}
	for _, a := range w.addresses {
		h.SetAddresses(a)
	}
	for _, l := range w.lbs {
		h.SetLoadBalancer(l)
	}
	h.Flush()
	return h
}

func TestListsOfSeveralTenantsAreTranslatedTheSameInAnyOrder(t *testing.T) {
	for seed := range uint64(40) {
		w := &world{rand.New(rand.NewPCG(seed, 1)), map[string]Tenant{}, map[model.ObjectName]Addresses{}, map[model.ObjectName]LoadBalancer{}, nil}
		h := NewTranslator()
		for step := range 200 {
			if w.change(h); w.random.IntN(3) > 0 {
				continue
			}
			h.Flush()
			full := w.hub()
			if got, want := h.Snapshot(), full.Snapshot(); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, step %d: got\n%s\nwant\n%s", seed, step, got.Text(), want.Text())
			}
			for name := range w.lbs {
				if got, want := h.Problems(name), full.Problems(name); !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d, step %d: %s has %v, want %v", seed, step, name, got, want)
				}
			}
		}
	}
}
