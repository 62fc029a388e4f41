package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
)

// shared returns a hub. Nodes of its tenants old and young are in 198.51.100.0/24, and those of far in another network.
func shared() *Translator {
	h := NewTranslator()
	for i, name := range []string{"old", "young"} {
		h.SetTenant(Tenant{Name: name, Created: int64(i), BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	}
	h.SetTenant(Tenant{Name: "far", Network: "site-2", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	return h
}

// setHeld sets the objects with their status.held, as the manager does.
func (h *Translator) setHeld(list ...Addresses) {
	for _, a := range list {
		if s := h.sources[a.ObjectName]; s != nil && s.object != nil {
			a.Held = s.object.Held
		}
		h.SetAddresses(a)
		a.Held = h.nodeOwners.AddressesToHold(a)
		h.SetAddresses(a)
	}
}

func inlineTarget(ip string) func(*LoadBalancer) {
	return func(l *LoadBalancer) { l.Reference, l.Addresses = nil, []Address{{IP: ip}} }
}

func targetsOf(t *testing.T, h *Translator, tenant string) string {
	t.Helper()
	h.Flush()
	var all []string
	for _, p := range h.Snapshot().Pools {
		for _, e := range p.Endpoints {
			if p.Tenant == tenant {
				all = append(all, e.ID)
			}
		}
	}
	return strings.Join(all, " ")
}

func expectTargets(t *testing.T, h *Translator, tenant, want string) {
	t.Helper()
	if got := targetsOf(t, h, tenant); got != want {
		t.Errorf("tenant %s has targets %q, not %q: %v", tenant, got, want, h.Problems(model.ObjectName{Namespace: "tenant-" + tenant, Name: "web"}))
	}
}

func TestTenantsDoNotReachEachOthersNodesInASharedNetwork(t *testing.T) {
	h := shared()
	h.setHeld(addressesOf("tenant-young", "198.51.100.11", "198.51.100.12"))
	h.SetLoadBalancer(lb("tenant-young", "web"))
	expectTargets(t, h, "young", "198.51.100.11 198.51.100.12")
	// The older tenant lists them, too, and then has one as a target in a LoadBalancer.
	h.SetAddresses(addressesOf("tenant-old", "198.51.100.11", "198.51.100.12", "198.51.100.21"))
	h.SetLoadBalancer(lb("tenant-old", "web", vips("203.0.113.2")))
	expectTargets(t, h, "old", "198.51.100.21")
	expectTargets(t, h, "young", "198.51.100.11 198.51.100.12")
	h.SetLoadBalancer(lb("tenant-old", "inline", vips("203.0.113.3"), inlineTarget("198.51.100.12")))
	expectTargets(t, h, "old", "198.51.100.21")
	if p, refused := Refused(h.Problems(model.ObjectName{Namespace: "tenant-old", Name: "inline"})); !refused || p.Reason != ReasonEndpointRefused ||
		!strings.Contains(p.Message, "198.51.100.12 is another tenant's node") || strings.Contains(p.Message, "young") {
		t.Errorf("%v", p)
	}
	// In another network the address belongs to another host.
	h.setHeld(addressesOf("tenant-far", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-far", "web", vips("203.0.113.4")))
	expectTargets(t, h, "far", "198.51.100.11")
	expectTargets(t, h, "young", "198.51.100.11 198.51.100.12")
	// Once the owner does not list an address any more, another tenant gets it.
	h.setHeld(addressesOf("tenant-young", "198.51.100.11"))
	expectTargets(t, h, "old", "198.51.100.12 198.51.100.21 198.51.100.12")
}

func TestTheTenantWithTheLongestPrefixOwnsANode(t *testing.T) {
	h := shared()
	h.setHeld(addressesOf("tenant-old", "198.51.100.11", "198.51.100.12"))
	h.SetLoadBalancer(lb("tenant-old", "web"))
	expectTargets(t, h, "old", "198.51.100.11 198.51.100.12")
	h.SetTenant(Tenant{Name: "young", Created: 1, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.12/32")}})
	expectTargets(t, h, "old", "198.51.100.11")
	h.SetAddresses(addressesOf("tenant-young", "198.51.100.12"))
	h.SetLoadBalancer(lb("tenant-young", "web", vips("203.0.113.2")))
	expectTargets(t, h, "young", "198.51.100.12")
	h.DeleteTenant("young")
	expectTargets(t, h, "old", "198.51.100.11 198.51.100.12")
}

func TestTheOlderOfTwoTenantsThatListANodeOwnsIt(t *testing.T) {
	h := shared()
	h.SetAddresses(addressesOf("tenant-young", "198.51.100.11"))
	h.SetAddresses(addressesOf("tenant-old", "198.51.100.11"))
	for _, name := range []string{"old", "young"} {
		h.SetLoadBalancer(lb("tenant-"+name, "web", vips(map[string]string{"old": "203.0.113.1", "young": "203.0.113.2"}[name])))
	}
	expectTargets(t, h, "old", "198.51.100.11")
	expectTargets(t, h, "young", "")
}

func TestOnlyDisputedAddressesNeedToBeOnRecord(t *testing.T) {
	c := NewNodeOwners()
	a := addressesOf("tenant-a", "198.51.100.11", "192.0.2.1", "no address")
	c.SetTenant(Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	c.SetTenant(Tenant{Name: "b", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}})
	c.SetAddresses(a)
	if hold := c.AddressesToHold(a); len(hold) != 0 {
		t.Errorf("addresses are to be on record that no other tenant can have: %v", hold)
	}
	c.SetTenant(Tenant{Name: "b", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	if hold := c.AddressesToHold(a); len(hold) != 1 || hold[0] != netip.MustParseAddr("198.51.100.11") {
		t.Errorf("%v", hold)
	}
}

func TestATenantThatListsANodeInAdvanceDoesNotGetItWhenItsNetworksGrow(t *testing.T) {
	narrow := Tenant{Name: "old", Created: 1, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	wide := narrow
	wide.BackendCIDRs = append(slices.Clone(wide.BackendCIDRs), netip.MustParsePrefix("198.51.100.0/24"))
	h, a := shared(), addressesOf("tenant-young", "198.51.100.11", "198.51.100.12")
	h.SetTenant(narrow)
	h.setHeld(a)
	h.SetLoadBalancer(lb("tenant-young", "web"))
	h.SetAddresses(addressesOf("tenant-old", "198.51.100.11"))
	h.setHeld(a)
	h.SetTenant(wide)
	expectTargets(t, h, "young", "198.51.100.11 198.51.100.12")
	// Another tenant that adds and removes an address causes no writes.
	h.SetTenant(narrow)
	h.DeleteAddresses(model.ObjectName{Namespace: "tenant-old", Name: "default"})
	a.Held = []netip.Addr{netip.MustParseAddr("198.51.100.11")}
	h.SetAddresses(a)
	if hold := h.nodeOwners.AddressesToHold(a); !slices.Equal(hold, a.Held) {
		t.Errorf("%v", hold)
	}
}

func TestHostsOfTheManagementClusterAreNeverTargets(t *testing.T) {
	h := shared()
	h.setHeld(addressesOf("tenant-old", "198.51.100.1", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-old", "web"))
	h.SetLoadBalancer(lb("tenant-old", "inline", vips("203.0.113.3"), inlineTarget("198.51.100.2")))
	expectTargets(t, h, "old", "198.51.100.1 198.51.100.11 198.51.100.2")
	h.SetHosts(map[netip.Addr]string{netip.MustParseAddr("198.51.100.1"): "gateway g1", netip.MustParseAddr("198.51.100.2"): "Node n1"})
	expectTargets(t, h, "old", "198.51.100.11")
	if p := h.Problems(model.ObjectName{Namespace: "tenant-old", Name: "web"}); len(p) != 1 || !strings.Contains(p[0].Message, "198.51.100.1 is an address of gateway g1 of the management cluster, which is never a target") {
		t.Errorf("%v", p)
	}
	// A prefix of the operator for this very address does not change that.
	h.SetTenant(Tenant{Name: "old", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32"), netip.MustParsePrefix("198.51.100.0/24")}})
	expectTargets(t, h, "old", "198.51.100.11")
	h.SetHosts(nil)
	expectTargets(t, h, "old", "198.51.100.1 198.51.100.11 198.51.100.2")
}

func TestDifferingReturnsChangedAddressesOnly(t *testing.T) {
	c, before := NewNodeOwners(), addressesOf("tenant-a", "198.51.100.11", "198.51.100.12", "198.51.100.13")
	c.SetAddresses(before)
	if differ := c.ChangedAddresses(before); len(differ) > 0 {
		t.Errorf("an unchanged object differs: %v", differ)
	}
	to := addressesOf("tenant-a", "198.51.100.12", "198.51.100.13", "198.51.100.14", "no address")
	to.Held = []netip.Addr{netip.MustParseAddr("198.51.100.13"), netip.MustParseAddr("198.51.100.99")}
	differ := c.ChangedAddresses(to)
	slices.SortFunc(differ, netip.Addr.Compare)
	if got := fmt.Sprint(differ); got != "[198.51.100.11 198.51.100.13 198.51.100.14]" {
		t.Errorf("want the removed address, the one newly on record and the added one, got %s", got)
	}
	if got := len(c.ChangedAddresses(to)); got != 3 {
		t.Errorf("a second call returns %d addresses", got)
	}
}

func TestOnlyUsedAddressesInTheRangesAreKept(t *testing.T) {
	network := netip.MustParsePrefix("198.51.0.0/16")
	list := addressesOf("tenant-a")
	for i := range 5000 {
		list.List = append(list.List, Address{IP: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}).String()})
	}
	ranges, err := ipam.ParseRanges([]string{"198.51.3.7/32"}, false)
	if err != nil {
		t.Fatal(err)
	}
	used := UsedByTargets(slices.Values([]Addresses{list}), map[string]Tenant{"tenant-a": {Name: "a", BackendCIDRs: []netip.Prefix{network}}}, TargetFilter{}, ranges)
	if want := (UsedAddresses{netip.MustParseAddr("198.51.3.7"): "a node of Tenant a"}); !maps.Equal(used, want) {
		t.Errorf("got %v, want %v", used, want)
	}
}

func TestCheckAndCountAddressesReturnsProblemsAndTheNumberOfEndpoints(t *testing.T) {
	tenant := Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/64")}}
	problems, endpoints := CheckAndCountAddresses(addressesOf("tenant-a", "198.51.100.1", "2001:db8::1", "2001:db8::2", "192.0.2.1"), tenant, TargetFilter{})
	if endpoints != 2 || len(problems) != 1 || problems[0].Reason != ReasonEndpointRefused {
		t.Errorf("%d endpoints, %v", endpoints, problems)
	}
}
