package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// Address plan: pool "public" 203.0.113.0/29 (.1 to .6 usable) and 2001:db8:f::/126 (::1 to ::3),
// pool "reserved" 192.0.2.10-192.0.2.11 for tenant blue, without AutoAssign.
func allocator(t *testing.T) *Allocator {
	t.Helper()
	a := NewAllocator()
	if overlaps := a.SetPools([]Pool{
		{Name: "public", Ranges: ranges(t, true, "203.0.113.0/29", "2001:db8:f::/126"), AutoAssign: true},
		{Name: "reserved", Ranges: ranges(t, true, "192.0.2.10-192.0.2.11"), Tenants: []string{"blue"}},
	}); len(overlaps) > 0 {
		t.Fatal(overlaps)
	}
	return a
}

func ranges(t *testing.T, avoid bool, entries ...string) []Range {
	t.Helper()
	r, err := ParseRanges(entries, avoid)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func addresses(allocations []Allocation) string {
	out := ""
	for _, g := range allocations {
		out += g.Address.String() + "@" + g.Pool + " "
	}
	return out
}

func TestRequests(t *testing.T) {
	ip := netip.MustParseAddr
	for name, c := range map[string]struct {
		request Request
		want    string
		reason  string
	}{
		"nothing in particular":       {Request{Tenant: "red"}, "203.0.113.1@public ", ""},
		"IPv6":                        {Request{Tenant: "red", Families: []Family{IPv6}}, "2001:db8:f::1@public ", ""},
		"both, IPv6 first":            {Request{Tenant: "red", Families: []Family{IPv6, IPv4}, Policy: RequireDualStack}, "2001:db8:f::1@public 203.0.113.1@public ", ""},
		"prefer dual, none named":     {Request{Tenant: "red", Policy: PreferDualStack}, "203.0.113.1@public 2001:db8:f::1@public ", ""},
		"requested":                   {Request{Tenant: "red", Requested: []netip.Addr{ip("203.0.113.5")}}, "203.0.113.5@public ", ""},
		"requested from own pool":     {Request{Tenant: "blue", Requested: []netip.Addr{ip("192.0.2.11")}}, "192.0.2.11@reserved ", ""},
		"requested of another tenant": {Request{Tenant: "red", Requested: []netip.Addr{ip("192.0.2.11")}}, "", AddressNotAvailable},
		"requested network address":   {Request{Tenant: "red", Requested: []netip.Addr{ip("203.0.113.0")}}, "", AddressNotAvailable},
		"two requested of a family":   {Request{Tenant: "red", Requested: []netip.Addr{ip("203.0.113.4"), ip("203.0.113.5")}}, "", ContradictoryRequest},
		"requested of another family": {Request{Tenant: "red", Families: []Family{IPv4}, Policy: SingleStack, Requested: []netip.Addr{ip("2001:db8:f::2")}}, "", ContradictoryRequest},
		"two requested, one family":   {Request{Tenant: "red", Policy: SingleStack, Requested: []netip.Addr{ip("203.0.113.5"), ip("2001:db8:f::2")}}, "", ContradictoryRequest},
		"one requested of each":       {Request{Tenant: "red", Policy: RequireDualStack, Requested: []netip.Addr{ip("2001:db8:f::2"), ip("203.0.113.5")}}, "2001:db8:f::2@public 203.0.113.5@public ", ""},
		"requested of another pool":   {Request{Tenant: "blue", Pool: "reserved", Requested: []netip.Addr{ip("203.0.113.5")}}, "", AddressNotAvailable},
		"endpoints of IPv6 only":      {Request{Tenant: "red", Endpoints: []Family{IPv6}}, "2001:db8:f::1@public ", ""},
		"endpoints of both":           {Request{Tenant: "red", Endpoints: []Family{IPv4, IPv6}}, "203.0.113.1@public ", ""},
		"a family beats endpoints":    {Request{Tenant: "red", Families: []Family{IPv4}, Endpoints: []Family{IPv6}}, "203.0.113.1@public ", ""},
		"requested and held":          {Request{Tenant: "red", Requested: []netip.Addr{ip("203.0.113.6")}}, "", AddressInUse},
	} {
		t.Run(name, func(t *testing.T) {
			a := allocator(t)
			a.Adopt("tenant-x/other", Claim{}, []Allocation{{ip("203.0.113.6"), "public"}})
			allocations, refusal := a.Allocate("tenant-a/web", c.request)
			if addresses(allocations) != c.want {
				t.Errorf("got %q, want %q", addresses(allocations), c.want)
			}
			if (refusal == nil) != (c.reason == "") || refusal != nil && refusal.Reason != c.reason {
				t.Errorf("refusal %+v, want reason %q", refusal, c.reason)
			}
		})
	}
}

func TestLimitsBoundNewAllocationsAndTakeNoneAway(t *testing.T) {
	n := func(v int32) *int32 { return &v }
	a := allocator(t)
	allocate := func(name string, request Request, limits Limits) (string, string) {
		request.Tenant, request.Limits = "red", limits
		allocations, refusal := a.Allocate("tenant-red/"+name, request)
		if refusal == nil {
			return addresses(allocations), ""
		}
		return addresses(allocations), refusal.Reason + ": " + refusal.Message
	}
	both := Request{Families: []Family{IPv4, IPv6}, Policy: RequireDualStack}
	shared := func(port int32) Request { return Request{Claim: Claim{Sharing: "k", Ports: []Port{{"TCP", port}}}} }
	for i, step := range []struct {
		name    string
		request Request
		limits  Limits
		want    string
		refused string
	}{
		{"none", Request{}, Limits{LoadBalancers: n(0)}, "", "LimitReached: Tenant red, spec.limits.loadBalancers is 0, and 0 LoadBalancers have addresses"},
		{"a", shared(80), Limits{LoadBalancers: n(1), Addresses: n(1)}, "203.0.113.1@public ", ""},
		{"b", Request{}, Limits{LoadBalancers: n(1)}, "", "LimitReached: Tenant red, spec.limits.loadBalancers is 1, and 1 LoadBalancers have addresses"},
		{"b", Request{}, Limits{Addresses: n(1)}, "", "LimitReached: Tenant red, spec.limits.addresses is 1, and it would have 2 addresses"},
		{"b", shared(81), Limits{Addresses: n(1)}, "203.0.113.1@public ", ""},                      // a shared address counts once
		{"a", shared(80), Limits{LoadBalancers: n(0), Addresses: n(0)}, "203.0.113.1@public ", ""}, // an owner keeps its address
		{"c", both, Limits{Addresses: n(2)}, "", "LimitReached: Tenant red, spec.limits.addresses is 2, and it would have 3 addresses"},
		{"c", both, Limits{Addresses: n(3)}, "203.0.113.2@public 2001:db8:f::1@public ", ""},
		{"c", Request{}, Limits{Addresses: n(1)}, "203.0.113.2@public ", ""}, // a limit keeps no owner from having fewer addresses than before
		{"c", both, Limits{Addresses: n(1)}, "203.0.113.2@public ", "LimitReached: Tenant red, spec.limits.addresses is 1, and it would have 3 addresses"},
	} {
		got, refused := allocate(step.name, step.request, step.limits)
		if got != step.want || !strings.HasPrefix(refused, step.refused) || (step.refused == "") != (refused == "") {
			t.Fatalf("step %d: got %q (%s), want %q (%s)", i, got, refused, step.want, step.refused)
		}
	}
	if count := a.CountOf("tenant-red"); count != (Count{LoadBalancers: 3, Addresses: 2, Ports: 2}) {
		t.Fatalf("counted %+v", count)
	}
	if _, refusal := a.Allocate("tenant-blue/a", Request{Tenant: "blue", Limits: Limits{LoadBalancers: n(1)}}); refusal != nil {
		t.Fatalf("another tenant's LoadBalancers count: %v", refusal)
	}
}

func TestALimitOfPortsRefusesMorePortsAndTakesNoneAway(t *testing.T) {
	n := func(v int32) *int32 { return &v }
	ports := func(numbers ...int32) (out []Port) {
		for _, number := range numbers {
			out = append(out, Port{"TCP", number})
		}
		return out
	}
	a := allocator(t)
	for i, step := range []struct {
		name          string
		ports         []Port
		limit         *int32
		has, refused  bool
		keeps, counts []Port
	}{
		{name: "a", ports: ports(80, 443), limit: n(3), has: true, counts: ports(80, 443)},
		{name: "b", ports: ports(80, 443), limit: n(3), refused: true, counts: ports(80, 443)},
		{name: "b", ports: ports(80), limit: n(3), has: true, counts: ports(80, 443, 80)},
		{name: "b", ports: ports(80, 81), limit: n(3), has: true, refused: true, keeps: ports(80), counts: ports(80, 443, 80)},
		{name: "a", ports: ports(80, 8443), limit: n(0), has: true, counts: ports(80, 8443, 80)}, // no more than it had
		{name: "a", ports: ports(80), limit: n(3), has: true, counts: ports(80, 80)},
		{name: "b", ports: ports(80, 81), limit: n(3), has: true, counts: ports(80, 80, 81)},
		{name: "b", ports: ports(80, 81, 82, 83), has: true, counts: ports(80, 80, 81, 82, 83)},
	} {
		allocations, refusal := a.Allocate("tenant-red/"+step.name, Request{Tenant: "red", Claim: Claim{Ports: step.ports}, Limits: Limits{Ports: step.limit}})
		if len(allocations) > 0 != step.has || (refusal != nil) != step.refused || a.CountOf("tenant-red").Ports != int32(len(step.counts)) {
			t.Fatalf("step %d: %v, %v, counted %+v", i, allocations, refusal, a.CountOf("tenant-red"))
		}
		if refusal == nil {
			continue
		}
		if !strings.Contains(refusal.Message, "Tenant red, spec.limits.ports is 3, and it would have 4 ports") {
			t.Fatalf("step %d: %s", i, refusal.Message)
		}
		if step.has && !slices.Equal(refusal.KeptClaim.Ports, step.keeps) || !step.has && refusal.KeptClaim != nil {
			t.Fatalf("step %d: keeps %v", i, refusal.KeptClaim)
		}
	}
}

func TestAnExhaustedPoolGivesAFreedAddress(t *testing.T) {
	a := allocator(t)
	for i := range 6 {
		if _, refusal := a.Allocate(fmt.Sprintf("t/%d", i), Request{Tenant: "red", Families: []Family{IPv4}}); refusal != nil {
			t.Fatal(refusal)
		}
	}
	if _, refusal := a.Allocate("t/late", Request{Tenant: "red", Families: []Family{IPv4}}); refusal == nil || refusal.Reason != PoolExhausted {
		t.Fatalf("got %v", refusal)
	}
	a.Release("t/3")
	if allocations, refusal := a.Allocate("t/late", Request{Tenant: "red", Families: []Family{IPv4}}); addresses(allocations) != "203.0.113.4@public " {
		t.Fatalf("got %v %v", allocations, refusal)
	}
}

func TestAnAllocationOutlivesItsPool(t *testing.T) {
	a := allocator(t)
	first, _ := a.Allocate("t/web", Request{Tenant: "red"})
	a.SetPools([]Pool{{Name: "new", Ranges: ranges(t, true, "198.51.100.0/24"), AutoAssign: true}})
	if again, refusal := a.Allocate("t/web", Request{Tenant: "red"}); refusal != nil || addresses(again) != addresses(first) {
		t.Errorf("was %v, became %v (%v)", first, again, refusal)
	}
}

func TestDualStackTransitionsKeepTheFirstAddress(t *testing.T) {
	a := allocator(t)
	a.Allocate("t/web", Request{Tenant: "red", Families: []Family{IPv4}})
	both, _ := a.Allocate("t/web", Request{Tenant: "red", Families: []Family{IPv4, IPv6}, Policy: RequireDualStack})
	if addresses(both) != "203.0.113.1@public 2001:db8:f::1@public " {
		t.Errorf("single to dual: %v", both)
	}
	one, _ := a.Allocate("t/web", Request{Tenant: "red", Families: []Family{IPv4}, Policy: SingleStack})
	if addresses(one) != "203.0.113.1@public " {
		t.Errorf("dual to single: %v", one)
	}
	if len(a.OwnersOf(netip.MustParseAddr("2001:db8:f::1"))) > 0 {
		t.Error("the second address is still held")
	}
}

func TestPreferDualStackTakesOneFamilyIfThereIsNoOther(t *testing.T) {
	a := NewAllocator()
	a.SetPools([]Pool{{Name: "v4", Ranges: ranges(t, true, "203.0.113.0/29"), AutoAssign: true}})
	if got, refusal := a.Allocate("t/p", Request{Tenant: "red", Policy: PreferDualStack}); refusal != nil || addresses(got) != "203.0.113.1@v4 " {
		t.Errorf("prefer: %v %v", got, refusal)
	}
	if _, refusal := a.Allocate("t/r", Request{Tenant: "red", Policy: RequireDualStack}); refusal == nil || refusal.Reason != NoMatchingPool {
		t.Errorf("require: %v", refusal)
	}
	if used := a.Usage("v4", IPv4).Used; used != 1 {
		t.Errorf("a refused request uses %d addresses", used-1)
	}
}

func TestAnOverlappingPoolGivesNoAddress(t *testing.T) {
	a := NewAllocator()
	overlaps := a.SetPools([]Pool{
		{Name: "old", Ranges: ranges(t, false, "203.0.113.0/30")},
		{Name: "new", Ranges: ranges(t, false, "203.0.113.2-203.0.113.9"), AutoAssign: true},
	})
	if len(overlaps) != 1 || overlaps[0] != (Overlap{"new", "old", "203.0.113.2-203.0.113.3"}) {
		t.Fatalf("got %v", overlaps)
	}
	if _, refusal := a.Allocate("t/web", Request{Tenant: "red"}); refusal == nil {
		t.Error("an address was given from the overlapping pool")
	}
}

func TestBadRangesAreRefused(t *testing.T) {
	for _, entry := range []string{"", "203.0.113.1", "203.0.113.9-203.0.113.1", "203.0.113.1-2001:db8::1", "::ffff:203.0.113.0/120", "fe80::1%eth0-fe80::2%eth0"} {
		if r, err := ParseRanges([]string{entry}, true); err == nil {
			t.Errorf("%q was read as %v", entry, r)
		}
	}
	if _, err := ParseRanges([]string{"203.0.113.0/24", "203.0.113.7-203.0.113.8"}, true); err == nil {
		t.Error("overlapping ranges were accepted")
	}
}

func TestPoolsWithAHigherPriorityGiveAddressesFirst(t *testing.T) {
	a := NewAllocator()
	a.SetPools([]Pool{
		{Name: "old", Ranges: ranges(t, true, "203.0.113.0/29"), AutoAssign: true},
		{Name: "first", Ranges: ranges(t, true, "192.0.2.10-192.0.2.10"), AutoAssign: true, Priority: 1},
		{Name: "young", Ranges: ranges(t, true, "198.51.100.0/24"), AutoAssign: true},
	})
	for owner, want := range []string{"192.0.2.10@first ", "203.0.113.1@old "} {
		allocations, refusal := a.Allocate(fmt.Sprint(owner), Request{Tenant: "red"})
		if got := addresses(allocations); refusal != nil || got != want {
			t.Errorf("%s, %v, want %s", got, refusal, want)
		}
	}
}

func TestADrainingPoolGivesNoAddressAndTakesNoneAway(t *testing.T) {
	pools := []Pool{{Name: "p", Ranges: ranges(t, true, "203.0.113.0/29"), AutoAssign: true}}
	a := NewAllocator()
	a.SetPools(pools)
	held, _ := a.Allocate("one", Request{Tenant: "red"})
	pools[0].Draining = true
	a.SetPools(pools)
	if still, refusal := a.Allocate("one", Request{Tenant: "red"}); refusal != nil || addresses(still) != addresses(held) {
		t.Errorf("%v became %v: %v", held, still, refusal)
	}
	for _, request := range []Request{{Tenant: "red"}, {Tenant: "red", Pool: "p"}, {Tenant: "red", Requested: []netip.Addr{netip.MustParseAddr("203.0.113.5")}}} {
		if allocations, refusal := a.Allocate("two", request); refusal == nil {
			t.Errorf("%+v got %v", request, allocations)
		}
	}
}

func TestARequestForAPoolGetsItsAddressesOnly(t *testing.T) {
	a := allocator(t)
	for _, step := range []struct {
		pool, tenant, want, reason string
	}{
		{"", "blue", "203.0.113.1@public ", ""},
		{"reserved", "blue", "192.0.2.10@reserved ", ""},
		{"", "blue", "192.0.2.10@reserved ", ""}, // an owner keeps its address if it names no pool
		{"none", "blue", "192.0.2.10@reserved ", NoMatchingPool},
		{"public", "blue", "203.0.113.2@public ", ""},
	} {
		allocations, refusal := a.Allocate("tenant-blue/web", Request{Tenant: step.tenant, Pool: step.pool})
		reason := ""
		if refusal != nil {
			reason = refusal.Reason
		}
		if got := addresses(allocations); got != step.want || reason != step.reason {
			t.Errorf("pool %q: %s %s, want %s %s", step.pool, got, reason, step.want, step.reason)
		}
	}
	if _, refusal := a.Allocate("tenant-red/web", Request{Tenant: "red", Pool: "reserved"}); refusal == nil || refusal.Reason != NoMatchingPool {
		t.Errorf("another tenant's pool: %v", refusal)
	}
}

func TestLoadBalancersOfOneTenantShareAnAddressWithTheSameKeyAndDifferentPorts(t *testing.T) {
	a := allocator(t)
	web, tls, dns := []Port{{"TCP", 80}}, []Port{{"TCP", 443}}, []Port{{"TCP", 53}, {"UDP", 53}}
	for _, step := range []struct {
		what, owner  string
		request      Request
		want, reason string
	}{
		{"the first", "tenant-a/web", Request{Claim: Claim{"shop", web}}, "203.0.113.1@public ", ""},
		{"another port", "tenant-a/tls", Request{Claim: Claim{"shop", tls}}, "203.0.113.1@public ", ""},
		{"the same port", "tenant-a/more", Request{Claim: Claim{"shop", web}}, "203.0.113.2@public ", ""},
		{"the same port, and that address", "tenant-a/wants", Request{Claim: Claim{"shop", web}, Requested: []netip.Addr{netip.MustParseAddr("203.0.113.1")}}, "", AddressInUse},
		{"no key", "tenant-a/alone", Request{Claim: Claim{"", dns}}, "203.0.113.3@public ", ""},
		{"another key", "tenant-a/other", Request{Claim: Claim{"blog", dns}}, "203.0.113.4@public ", ""},
		{"another tenant", "tenant-b/thief", Request{Claim: Claim{"shop", dns}, Requested: []netip.Addr{netip.MustParseAddr("203.0.113.1")}}, "", AddressInUse},
		{"a request for that address", "tenant-a/dns", Request{Claim: Claim{"shop", dns}, Requested: []netip.Addr{netip.MustParseAddr("203.0.113.1")}}, "203.0.113.1@public ", ""},
		{"a change to a port that is taken", "tenant-a/tls", Request{Claim: Claim{"shop", web}}, "203.0.113.1@public ", AddressInUse},
		{"the first again", "tenant-a/web", Request{Claim: Claim{"shop", web}}, "203.0.113.1@public ", ""},
		{"a key that is removed", "tenant-a/web", Request{Claim: Claim{"", web}}, "203.0.113.1@public ", AddressInUse},
	} {
		step.request.Tenant, step.request.Families = "any", []Family{IPv4}
		allocations, refusal := a.Allocate(step.owner, step.request)
		if addresses(allocations) != step.want || (refusal == nil) != (step.reason == "") || refusal != nil && refusal.Reason != step.reason {
			t.Errorf("%s: %s, %v, want %s %s", step.what, addresses(allocations), refusal, step.want, step.reason)
		}
	}
	if used := a.Usage("public", IPv4).Used; used != 4 {
		t.Errorf("%d addresses are used", used)
	}
	for _, owner := range []string{"tenant-a/web", "tenant-a/tls"} {
		a.Release(owner)
	}
	if used := a.Usage("public", IPv4).Used; used != 4 {
		t.Errorf("%d addresses are used, although an owner of the shared address is left", used)
	}
	a.Release("tenant-a/dns")
	if used := a.Usage("public", IPv4).Used; used != 3 {
		t.Errorf("%d addresses are used when all owners of the shared address are gone", used)
	}
}

func TestAnAddressRequestedByNameIsReservedForItsTenant(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	a, address := NewAllocator(), netip.MustParseAddr("203.0.113.1")
	a.SetPools([]Pool{{Name: "p", Ranges: ranges(t, false, "203.0.113.0/31"), AutoAssign: true}})
	request := func(owner string, limits Limits, requested ...netip.Addr) (string, *Refusal) {
		allocations, refusal := a.Allocate(owner, Request{Tenant: tenantOf(owner), Requested: requested, Limits: limits})
		if len(allocations) == 0 {
			return "", refusal
		}
		return allocations[0].Address.String(), refusal
	}
	reserve := func(in time.Duration) { a.Reserve(Reservation{address, "tenant-a", at.Add(in)}) }
	a.SetTime(at)
	request("tenant-a/web", Limits{}, address)
	reserve(5 * time.Minute)
	a.Release("tenant-a/web")
	if _, refusal := request("tenant-b/waits", Limits{}, address); refusal == nil || refusal.Reason != AddressInUse || !strings.Contains(refusal.Message, "is reserved until 2027-01-15T08:05:00Z for the tenant that had it") {
		t.Errorf("%v", refusal)
	}
	// It is not assigned to a request without an address either.
	if got, _ := request("tenant-b/any", Limits{}); got != "203.0.113.0" {
		t.Errorf("%s", got)
	}
	if _, refusal := request("tenant-b/any-more", Limits{}); refusal == nil || refusal.Reason != PoolExhausted {
		t.Errorf("%v", refusal)
	}
	// Its tenant gets it, which ends the reservation.
	if got, refusal := request("tenant-a/anew", Limits{}, address); refusal != nil || got != address.String() || a.CountReservations() != 0 {
		t.Errorf("%s %v, %d reserved", got, refusal, a.CountReservations())
	}
	a.Release("tenant-a/anew")
	// After that time any tenant can have it.
	reserve(5 * time.Minute)
	if ended, next := a.SetTime(at.Add(5*time.Minute - 1)); ended || !next.Equal(at.Add(5*time.Minute)) {
		t.Errorf("%v %v", ended, next)
	}
	if ended, next := a.SetTime(at.Add(5 * time.Minute)); !ended || !next.IsZero() {
		t.Errorf("%v %v", ended, next)
	}
	if got, refusal := request("tenant-b/waits", Limits{}, address); refusal != nil || got != address.String() {
		t.Errorf("%s %v", got, refusal)
	}
	// A reservation that is over is not added.
	reserve(time.Minute)
	if a.CountReservations() != 0 {
		t.Error("the address is reserved until a time that is over")
	}
}

func TestReservationsCountAgainstTheLimitOfAddresses(t *testing.T) {
	at, one := time.Unix(1_800_000_000, 0), int32(1)
	a := NewAllocator()
	a.SetPools([]Pool{{Name: "p", Ranges: ranges(t, false, "203.0.113.0/29"), AutoAssign: true}})
	a.SetTime(at)
	for i, text := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"} {
		address := netip.MustParseAddr(text)
		request := Request{Tenant: "tenant-a", Requested: []netip.Addr{address}, Limits: Limits{Addresses: &one}}
		if _, refusal := a.Allocate("tenant-a/web", request); refusal != nil {
			t.Error(refusal)
		}
		if a.CountReservations() != 0 {
			t.Errorf("the tenant has its limit of 1 address, and %d are reserved for it", a.CountReservations())
		}
		a.Reserve(Reservation{address, "tenant-a", at.Add(time.Duration(i+1) * time.Minute)})
		a.Release("tenant-a/web")
	}
}

func TestATenantsReservationsTakeNoRoomOfOtherTenants(t *testing.T) {
	at, a := time.Unix(1_800_000_000, 0), NewAllocator()
	a.SetPools([]Pool{{Name: "p", Ranges: ranges(t, false, "203.0.113.0/28")}, {Name: "q", Ranges: ranges(t, false, "198.51.100.0/28")}})
	a.SetTime(at)
	reserve := func(pool, namespace, address string, minutes int) {
		a.ReserveWithin(pool, 3, Reservation{netip.MustParseAddr(address), namespace, at.Add(time.Duration(minutes) * time.Minute)})
	}
	reserve("q", "tenant-hostile", "198.51.100.1", 1)
	for i := range 10 {
		reserve("p", "tenant-hostile", fmt.Sprintf("203.0.113.%d", 1+i), 1+i)
	}
	reserve("p", "tenant-a", "203.0.113.12", 5)
	var reserved []string
	for _, r := range a.ReservationsOf("p") {
		reserved = append(reserved, r.Address.String())
	}
	if want := []string{"203.0.113.9", "203.0.113.10", "203.0.113.12"}; !slices.Equal(reserved, want) {
		t.Errorf("%v, want %v", reserved, want)
	}
	if len(a.ReservationsOf("q")) != 1 {
		t.Error("a reservation in another pool has ended")
	}
}

func TestTheSharedAddressDoesNotDependOnOtherTenants(t *testing.T) {
	a := NewAllocator()
	a.SetPools([]Pool{{Name: "p", Ranges: ranges(t, false, "203.0.113.0/30"), AutoAssign: true}})
	request := func(owner string, port int32) string {
		allocations, refusal := a.Allocate(owner, Request{Tenant: "a", Claim: Claim{"key", []Port{{"TCP", port}}}})
		if refusal != nil {
			t.Fatal(refusal)
		}
		return allocations[0].Address.String()
	}
	for i := range 3 { // another tenant gets three addresses and releases the first two
		a.Allocate(fmt.Sprint("tenant-b/", i), Request{Tenant: "b"})
	}
	a.Release("tenant-b/0")
	a.Release("tenant-b/1")
	if one, two := request("tenant-a/one", 80), request("tenant-a/two", 80); one != "203.0.113.3" || two != "203.0.113.0" {
		t.Error(one, two)
	}
	if three := request("tenant-a/three", 443); three != "203.0.113.3" {
		t.Errorf("%s is not the address of the first LoadBalancer", three)
	}
}

func TestMergedRangesNeitherOverlapNorTouch(t *testing.T) {
	var networks []netip.Prefix
	for _, text := range []string{"10.244.0.0/16", "2001:db8::/126", "10.96.0.0/12", "10.112.0.0/16", "10.96.7.9/24", "255.255.255.0/24", "::/128"} {
		networks = append(networks, netip.MustParsePrefix(text))
	}
	want := "[10.96.0.0-10.112.255.255 10.244.0.0-10.244.255.255 255.255.255.0-255.255.255.255 ::-:: 2001:db8::-2001:db8::3]"
	if got := fmt.Sprint(MergeNetworks(networks)); got != want {
		t.Errorf("%s, not %s", got, want)
	}
}
