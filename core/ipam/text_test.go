package ipam

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

func TestFamiliesAreReadAsTheyAreWritten(t *testing.T) {
	text, err := json.Marshal([]Family{IPv4, IPv6})
	if err != nil || string(text) != `["IPv4","IPv6"]` {
		t.Errorf("written as %s: %v", text, err)
	}
	var read []Family
	if err := json.Unmarshal(text, &read); err != nil || len(read) != 2 || read[0] != IPv4 || read[1] != IPv6 {
		t.Errorf("read as %v: %v", read, err)
	}
	for _, text := range []string{"IPv5", "ipv4", "", "4"} {
		family := IPv6
		if err := family.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), `"`+text+`" is neither IPv4 nor IPv6`) || family != IPv6 {
			t.Errorf("%q is read as %s: %v", text, family, err)
		}
	}
}

func TestARefusedEntryOfAPoolIsNamedWithTheReason(t *testing.T) {
	for entry, want := range map[string]string{
		"everything":                  `"everything": neither a CIDR nor a range first-last: `,
		"203.0.113.1":                 `"203.0.113.1": neither a CIDR nor a range first-last: `,
		"203.0.113.0/33":              `"203.0.113.0/33": neither a CIDR nor a range first-last: `,
		"first-203.0.113.9":           `"first-203.0.113.9": ParseAddr("first")`,
		"203.0.113.1-last":            `"203.0.113.1-last": ParseAddr("last")`,
		"203.0.113.9-203.0.113.1":     "not higher",
		"203.0.113.1-2001:db8::1":     "of the same family",
		"fe80::1%eth0-fe80::2%eth0":   "of the same family",
		"::ffff:203.0.113.0/120":      "write them as IPv4 addresses",
		"::/0":                        "IPv4-mapped addresses",
		"198.51.100.9-198.51.100.12":  `overlaps 198.51.100.0-198.51.100.15 of the same pool; remove one of them`,
		"198.51.100.15-198.51.100.15": `overlaps 198.51.100.0-198.51.100.15`,
	} {
		got, err := ParseRanges([]string{"198.51.100.0/28", entry}, false)
		if err == nil || !strings.Contains(err.Error(), want) || got != nil {
			t.Errorf("%s: %v, %v, want %s", entry, got, err, want)
		}
	}
}

func TestNetworkAddressesAreLeftOutOfCIDRsOnly(t *testing.T) {
	for entry, want := range map[string][2]string{
		"203.0.113.0/29":            {"203.0.113.0-203.0.113.7", "203.0.113.1-203.0.113.6"},
		"203.0.113.5/29":            {"203.0.113.0-203.0.113.7", "203.0.113.1-203.0.113.6"},
		"203.0.113.0/30":            {"203.0.113.0-203.0.113.3", "203.0.113.1-203.0.113.2"},
		"203.0.113.0/31":            {"203.0.113.0-203.0.113.1", "203.0.113.0-203.0.113.1"},
		"203.0.113.0/32":            {"203.0.113.0-203.0.113.0", "203.0.113.0-203.0.113.0"},
		"2001:db8::/126":            {"2001:db8::-2001:db8::3", "2001:db8::1-2001:db8::3"},
		"2001:db8::/127":            {"2001:db8::-2001:db8::1", "2001:db8::-2001:db8::1"},
		"2001:db8::/64":             {"2001:db8::-2001:db8::ffff:ffff:ffff:ffff", "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff"},
		"203.0.113.0-203.0.113.7":   {"203.0.113.0-203.0.113.7", "203.0.113.0-203.0.113.7"},
		"203.0.113.4 - 203.0.113.4": {"203.0.113.4-203.0.113.4", "203.0.113.4-203.0.113.4"},
	} {
		for i, avoid := range []bool{false, true} {
			if got := ranges(t, avoid, entry); len(got) != 1 || got[0].String() != want[i] {
				t.Errorf("%s, avoiding %v: %v, want %s", entry, avoid, got, want[i])
			}
		}
	}
}

func TestARangeContainsItsEndsAndNoAddressOfTheOtherFamily(t *testing.T) {
	r := ranges(t, false, "203.0.113.4-203.0.113.6")[0]
	for address, want := range map[string]bool{"203.0.113.3": false, "203.0.113.4": true, "203.0.113.5": true, "203.0.113.6": true, "203.0.113.7": false, "::": false, "::ffff:203.0.113.5": false} {
		if got := r.Contains(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s contains %s: %v", r, address, got)
		}
	}
	if r.Contains(netip.Addr{}) {
		t.Error("it contains the zero address")
	}
	for other, want := range map[string]bool{"203.0.113.0-203.0.113.3": false, "203.0.113.0-203.0.113.4": true, "203.0.113.5-203.0.113.5": true, "203.0.113.6-203.0.113.9": true, "203.0.113.7-203.0.113.9": false, "::-::1": false} {
		if o := ranges(t, false, other)[0]; r.Overlaps(o) != want || o.Overlaps(r) != want {
			t.Errorf("%s overlaps %s: %v, %v", r, o, r.Overlaps(o), o.Overlaps(r))
		}
	}
}

func TestThePoolBeforeKeepsTheAddressesOfAnOverlap(t *testing.T) {
	pool := func(name string, entries ...string) Pool {
		return Pool{Name: name, Ranges: ranges(t, false, entries...)}
	}
	got := Overlaps([]Pool{pool("one", "203.0.113.0/28"), pool("six", "2001:db8::/64"), pool("two", "198.51.100.0/24", "203.0.113.8-203.0.113.40"), pool("three", "203.0.113.32/28"), pool("four", "192.0.2.0/24")})
	want := []Overlap{{"two", "one", "203.0.113.8-203.0.113.15"}, {"three", "two", "203.0.113.32-203.0.113.40"}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestAPoolMayNameTenants(t *testing.T) {
	all, some := Pool{}, Pool{Tenants: []string{"blue", "green"}}
	if !all.Allows("red") || some.Allows("red") || !some.Allows("green") || some.Allows("") {
		t.Error("a pool allows a tenant that it does not name, or refuses one that it does")
	}
}

func TestARefusalIsAnErrorWithItsMessage(t *testing.T) {
	a := allocator(t)
	_, refusal := a.Allocate("tenant-red/web", Request{Tenant: "red", Requested: []netip.Addr{netip.MustParseAddr("192.0.2.99")}})
	var err error = refusal
	if refusal == nil || err.Error() != refusal.Message || !strings.Contains(err.Error(), "192.0.2.99") {
		t.Errorf("%v", err)
	}
}

func TestOwnersAreCountedByTenantAndForgottenWithTheirAddresses(t *testing.T) {
	a := allocator(t)
	ports := []Port{{"TCP", 80}, {"TCP", 443}}
	for _, owner := range []string{"tenant-red/a", "tenant-red/b", "tenant-blue/a"} {
		if _, refusal := a.Allocate(owner, Request{Tenant: strings.TrimPrefix(owner[:len(owner)-2], "tenant-"), Claim: Claim{Ports: ports}}); refusal != nil {
			t.Fatal(refusal)
		}
	}
	if got := a.CountOf("tenant-red"); got != (Count{LoadBalancers: 2, Addresses: 2, Ports: 4}) {
		t.Errorf("red has %+v", got)
	}
	if a.PortsOf("tenant-red/a") != 2 || a.PortsOf("tenant-red/none") != 0 {
		t.Errorf("%d and %d ports", a.PortsOf("tenant-red/a"), a.PortsOf("tenant-red/none"))
	}
	a.Release("tenant-red/a")
	a.Release("tenant-red/b")
	if got := a.CountOf("tenant-red"); got != (Count{}) {
		t.Errorf("red still has %+v", got)
	}
	if got := a.CountOf("tenant-blue"); got != (Count{1, 1, 2}) {
		t.Errorf("blue has %+v", got)
	}
	if a.PortsOf("tenant-red/a") != 0 {
		t.Errorf("a released owner has %d ports", a.PortsOf("tenant-red/a"))
	}
}

// Addresses of hosts are in pools by mistake: the hub's own hosts, routers, or nodes.
func TestAnAddressOfAHostIsNeitherGivenNorCountedAsFree(t *testing.T) {
	ip := netip.MustParseAddr
	a := allocator(t)
	a.SetHosts(map[netip.Addr]string{ip("203.0.113.1"): "the router", ip("203.0.113.2"): "Node n1", ip("198.51.100.1"): "no address of a pool"})
	if len(a.hosts) != 2 {
		t.Errorf("it keeps %v", a.hosts)
	}
	if got := a.Usage("public", IPv4); got.Used != 0 || got.Free.Int64() != 4 {
		t.Errorf("%+v", got)
	}
	if got := a.Usage("public", IPv6); got.Free.Int64() != 3 {
		t.Errorf("hosts of the other family count: %+v", got)
	}
	if got := a.Usage("no such pool", IPv4); got.Used != 0 || got.Free.Sign() != 0 {
		t.Errorf("%+v", got)
	}
	allocations, refusal := a.Allocate("tenant-red/web", Request{Tenant: "red"})
	if addresses(allocations) != "203.0.113.3@public " || refusal != nil {
		t.Errorf("got %s, %+v", addresses(allocations), refusal)
	}
	_, refusal = a.Allocate("tenant-red/asks", Request{Tenant: "red", Requested: []netip.Addr{ip("203.0.113.1")}})
	if refusal == nil || !strings.Contains(refusal.Message, "203.0.113.1") || !strings.Contains(refusal.Message, "the router") {
		t.Errorf("refusal %+v", refusal)
	}
}

func TestAnOwnerKeepsAnAddressThatAHostHasNow(t *testing.T) {
	a := allocator(t)
	before, _ := a.Allocate("tenant-red/web", Request{Tenant: "red"})
	a.SetHosts(map[netip.Addr]string{before[0].Address: "Node n1"})
	after, refusal := a.Allocate("tenant-red/web", Request{Tenant: "red"})
	if refusal != nil || addresses(after) != addresses(before) {
		t.Errorf("it has %s, %+v", addresses(after), refusal)
	}
	if got := a.Usage("public", IPv4); got.Used != 1 || got.Free.Int64() != 5 {
		t.Errorf("it is counted twice: %+v", got)
	}
	a.SetHosts(nil)
	a.Release("tenant-red/web")
	if got := a.Usage("public", IPv4); got.Used != 0 || got.Free.Int64() != 6 {
		t.Errorf("%+v", got)
	}
}

func TestAnAddressOnRecordOfAnotherTenantIsNotAdopted(t *testing.T) {
	ip := netip.MustParseAddr
	a := allocator(t)
	first := []Allocation{{ip("203.0.113.4"), "public"}}
	if conflicts := a.Adopt("tenant-red/web", Claim{}, first); len(conflicts) != 0 {
		t.Fatal(conflicts)
	}
	if conflicts := a.Adopt("tenant-red/other", Claim{}, first); len(conflicts) != 0 {
		t.Errorf("one tenant's LoadBalancers share it on record: %v", conflicts)
	}
	conflicts := a.Adopt("tenant-blue/web", Claim{Ports: []Port{{"TCP", 80}}}, first)
	if len(conflicts) != 1 || conflicts[0].Error() != "address 203.0.113.4 of tenant-blue/web is held by tenant-red/web" {
		t.Errorf("%v", conflicts)
	}
	if got := a.CountOf("tenant-blue"); got != (Count{}) {
		t.Errorf("blue has %+v of nothing", got)
	}
	conflicts = a.Adopt("tenant-blue/web", Claim{}, append([]Allocation{{ip("203.0.113.5"), "public"}}, first...))
	if len(conflicts) != 1 || addresses(a.AllocationsOf("tenant-blue/web")) != "203.0.113.5@public " {
		t.Errorf("%v, and it has %v", conflicts, a.AllocationsOf("tenant-blue/web"))
	}
}
