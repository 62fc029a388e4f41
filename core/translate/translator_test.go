package translate

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
)

// Address plan: tenant a has nodes 198.51.100.11-13 and 2001:db8:1::11-13 within 198.51.100.0/24 and 2001:db8:1::/64,
// tenant b the same with 192.0.2.0/24. VIPs are 203.0.113.0/24 and 2001:db8:f::/64.
func testHub() *Translator {
	h := NewTranslator()
	vips, err := ipam.ParseRanges([]string{"203.0.113.0/24", "2001:db8:f::/64"}, false)
	if err != nil {
		panic(err)
	}
	h.SetTargetFilter(TargetFilter{VIPs: vips, Forbidden: []netip.Prefix{netip.MustParsePrefix("198.51.100.200/32")}})
	h.SetTenant(Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}})
	h.SetTenant(Tenant{Name: "b", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("203.0.113.0/24")}})
	return h
}

func addressesOf(namespace string, ips ...string) Addresses {
	a := Addresses{ObjectName: model.ObjectName{Namespace: namespace, Name: "default"}}
	for _, ip := range ips {
		a.List = append(a.List, Address{IP: ip})
	}
	return a
}

func lb(namespace, name string, change ...func(*LoadBalancer)) LoadBalancer {
	out := LoadBalancer{
		ObjectName: model.ObjectName{Namespace: namespace, Name: name}, Type: "LoadBalancer",
		Ports: []Port{{"http", 80, "TCP"}}, EndpointPorts: []Port{{"http", 30080, "TCP"}},
		Reference: &model.ObjectName{Name: "default"},
		VIPs:      []netip.Addr{netip.MustParseAddr("203.0.113.1")},
	}
	for _, c := range change {
		c(&out)
	}
	return out
}

func vips(addresses ...string) func(*LoadBalancer) {
	return func(l *LoadBalancer) {
		l.VIPs = nil
		for _, a := range addresses {
			l.VIPs = append(l.VIPs, netip.MustParseAddr(a))
		}
	}
}

func local(ips ...string) func(*LoadBalancer) {
	return func(l *LoadBalancer) {
		l.LocalOnly = true
		list := addressesOf("", ips...).List
		l.Local = &list
	}
}

func snapshot(t *testing.T, h *Translator) string {
	t.Helper()
	h.Flush()
	s := h.Snapshot()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s.Text()
}

func want(t *testing.T, got string, lines ...string) {
	t.Helper()
	if expected := strings.Join(lines, "\n") + "\n"; got != expected {
		t.Errorf("got\n%s\nwant\n%s", got, expected)
	}
}

func TestServicesOfATenantShareOnePool(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.12", "198.51.100.11", "2001:db8:1::11"))
	h.SetLoadBalancer(lb("tenant-a", "web", vips("203.0.113.1", "2001:db8:f::1")))
	h.SetLoadBalancer(lb("tenant-a", "dns", vips("203.0.113.2"), func(l *LoadBalancer) {
		l.Ports = []Port{{"u", 53, "UDP"}, {"t", 53, "TCP"}}
		l.EndpointPorts = []Port{{"t", 30001, "TCP"}, {"u", 30002, "UDP"}}
	}))
	want(t, snapshot(t, h),
		"pool a/default.v4 tenant=a",
		"  endpoint 198.51.100.11 address=198.51.100.11 weight=1 active",
		"  endpoint 198.51.100.12 address=198.51.100.12 weight=1 active",
		"pool a/default.v6 tenant=a",
		"  endpoint 2001:db8:1::11 address=2001:db8:1::11 weight=1 active",
		"frontend TCP 203.0.113.1:80 pool=a/default.v4 target=30080 tenant=a owner=tenant-a/web",
		"frontend TCP 203.0.113.2:53 pool=a/default.v4 target=30001 tenant=a owner=tenant-a/dns",
		"frontend UDP 203.0.113.2:53 pool=a/default.v4 target=30002 tenant=a owner=tenant-a/dns",
		"frontend TCP [2001:db8:f::1]:80 pool=a/default.v6 target=30080 tenant=a owner=tenant-a/web")
}

func TestANewNodeChangesOnePoolWhateverTheNumberOfServices(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	for i := range 500 {
		h.SetLoadBalancer(lb("tenant-a", fmt.Sprintf("s%03d", i), vips(fmt.Sprintf("203.0.113.%d", i%250)), func(l *LoadBalancer) {
			l.Ports[0].Number = int32(1000 + i)
		}))
	}
	if d := h.Flush().Model; len(d.UpsertFrontends) != 500 || len(d.UpsertPools) != 1 {
		t.Fatalf("%d frontends, %d pools", len(d.UpsertFrontends), len(d.UpsertPools))
	}
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "198.51.100.12"))
	if d := h.Flush().Model; d.Len() != 1 || len(d.UpsertPools) != 1 {
		t.Errorf("changes: %+v", d)
	}
	// An unchanged object translates nothing again: only its status was written.
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "198.51.100.12"))
	h.SetTargetFilter(h.filter)
	h.SetTenant(h.tenants["tenant-a"])
	if len(h.dirtyLBs)+len(h.dirtyPools) > 0 {
		t.Errorf("%d LoadBalancers and %d pools are translated again without a change", len(h.dirtyLBs), len(h.dirtyPools))
	}
	h.SetLoadBalancer(lb("tenant-a", "s000", vips("203.0.113.0"), func(l *LoadBalancer) { l.Ports[0].Number = 999 }))
	if d := h.Flush().Model; d.Len() != 2 || len(d.UpsertFrontends) != 1 || len(d.DeleteFrontends) != 1 {
		t.Errorf("changes: %+v", d)
	}
}

func TestAServiceOfPolicyLocalHasItsOwnPoolWhichMayBeEmpty(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "198.51.100.12"))
	h.SetLoadBalancer(lb("tenant-a", "web", local("198.51.100.12"), func(l *LoadBalancer) { l.HealthCheckNodePort = 31000 }))
	first := h.Flush()
	if got := fmt.Sprint(first.NewTargets); got != "[{a 198.51.100.12 1 31000}]" {
		t.Errorf("targets %s", got)
	}
	h.SetHealth(first.NewTargets[0], Health{Weight: 3})
	if got := snapshot(t, h); !strings.Contains(got, "endpoint 198.51.100.12 address=198.51.100.12 weight=3 active") || strings.Contains(got, "198.51.100.11") {
		t.Error(got)
	}
	h.SetLoadBalancer(lb("tenant-a", "web", local()))
	if got := snapshot(t, h); strings.Contains(got, "endpoint") || !strings.Contains(got, "frontend TCP 203.0.113.1:80") {
		t.Error(got)
	}
}

func TestALocalPoolStaysTheSameWhilePodsMove(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "198.51.100.12"))
	with := func(name, vip string, nodes ...string) LoadBalancer {
		return lb("tenant-a", name, vips(vip), local(nodes...))
	}
	h.SetLoadBalancer(with("web", "203.0.113.1", "198.51.100.11"))
	h.SetLoadBalancer(with("api", "203.0.113.2", "198.51.100.11"))
	first := h.Flush().Model
	if len(first.UpsertPools) != 2 {
		t.Fatalf("each LoadBalancer has its pool: %v", first.UpsertPools)
	}
	h.SetLoadBalancer(with("web", "203.0.113.1", "198.51.100.11", "198.51.100.12"))
	joined := h.Flush().Model
	if len(joined.UpsertPools) != 1 || len(joined.UpsertFrontends)+len(joined.DeletePools) != 0 || len(joined.UpsertPools[0].Endpoints) != 2 {
		t.Errorf("a pod starts on another node: %+v", joined)
	}
	h.SetLoadBalancer(with("web", "203.0.113.1", "198.51.100.12"))
	left := h.Flush().Model
	if len(left.UpsertPools) != 1 || len(left.UpsertFrontends)+len(left.DeletePools) != 0 || left.UpsertPools[0].ID != joined.UpsertPools[0].ID {
		t.Errorf("a pod ends: %+v", left)
	}
	h.DeleteLoadBalancer(with("web", "203.0.113.1").ObjectName)
	if gone := h.Flush().Model; len(gone.DeletePools) != 1 || gone.DeletePools[0] != left.UpsertPools[0].ID {
		t.Errorf("the pool goes with its LoadBalancer: %+v", gone)
	}
}

func TestANewNodeOfPolicyLocalWaitsForItsHealthCheck(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "198.51.100.12"))
	health := func(l *LoadBalancer) { l.HealthCheckNodePort = 31000 }
	h.SetLoadBalancer(lb("tenant-a", "web", local("198.51.100.11"), health))
	first := h.Flush().NewTargets
	if got := snapshot(t, h); !strings.Contains(got, "address=198.51.100.11 weight=1 active") {
		t.Errorf("the only endpoint is not active: %s", got)
	}
	h.SetHealth(first[0], Health{Weight: 1})
	h.SetLoadBalancer(lb("tenant-a", "web", local("198.51.100.11", "198.51.100.12"), health))
	second := h.Flush().NewTargets
	if got := snapshot(t, h); !strings.Contains(got, "address=198.51.100.11 weight=1 active") || !strings.Contains(got, "address=198.51.100.12 weight=1 unhealthy") {
		t.Error(got)
	}
	h.SetHealth(second[0], Health{})
	if got := snapshot(t, h); strings.Contains(got, "unhealthy") {
		t.Error(got)
	}
}

func TestIfAllEndpointsAreUnhealthyAllAreActive(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "198.51.100.12"))
	h.SetLoadBalancer(lb("tenant-a", "web"))
	targets := h.Flush().NewTargets
	h.SetHealth(targets[0], Health{State: model.Unhealthy})
	if got := snapshot(t, h); strings.Count(got, "unhealthy") != 1 || strings.Count(got, "weight=1 active") != 1 {
		t.Error(got)
	}
	h.SetHealth(targets[1], Health{State: model.Unhealthy})
	if got := snapshot(t, h); strings.Count(got, "weight=1 active") != 2 {
		t.Error(got)
	}
}

func TestDirectForwardingNeedsNoNodePort(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-a", "web", func(l *LoadBalancer) { l.Forwarding, l.EndpointPorts[0].Number = "direct", 0 }))
	if got := snapshot(t, h); !strings.Contains(got, "frontend TCP 203.0.113.1:80 pool=a/default.v4 target=80 forwarding=direct") {
		t.Error(got)
	}
	// Without a NodePort no health check connects to it.
	h.SetLoadBalancer(lb("tenant-a", "web", func(l *LoadBalancer) {
		l.Forwarding, l.EndpointPorts[0].Number, l.LocalOnly = "direct", 0, true
	}))
	if got := snapshot(t, h); !strings.Contains(got, "pool=a/default.v4 ") {
		t.Error(got)
	}
}

func TestInvalidLoadBalancersAreRefused(t *testing.T) {
	inline := func(ip string) func(*LoadBalancer) {
		return func(l *LoadBalancer) { l.Reference, l.Addresses = nil, []Address{{IP: ip}} }
	}
	for name, c := range map[string]struct {
		change  func(*LoadBalancer)
		reason  string
		message string
	}{
		"no ports":   {func(l *LoadBalancer) { l.Ports = nil }, ReasonNoPorts, "spec.ports"},
		"port 0":     {func(l *LoadBalancer) { l.Ports[0].Number = 0 }, ReasonInvalidPort, "spec.ports[0].port is 0"},
		"port 70000": {func(l *LoadBalancer) { l.Ports[0].Number = 70000 }, ReasonInvalidPort, "70000"},
		"a port twice": {func(l *LoadBalancer) {
			l.Ports = append(l.Ports, l.Ports[0])
			l.EndpointPorts = append(l.EndpointPorts, l.EndpointPorts[0])
		}, ReasonDuplicatePort, "spec.ports[1]"},
		"node port 70000":           {func(l *LoadBalancer) { l.EndpointPorts[0].Number = 70000 }, ReasonInvalidPort, "70000"},
		"SCTP":                      {func(l *LoadBalancer) { l.Ports[0].Protocol = "SCTP" }, ReasonUnsupportedProtocol, "SCTP"},
		"fewer endpoint ports":      {func(l *LoadBalancer) { l.EndpointPorts = nil }, ReasonPortsMismatch, "spec.endpoints[0].ports"},
		"a node's sshd":             {func(l *LoadBalancer) { l.EndpointPorts[0].Number = 22 }, ReasonPortRefused, "port 22 is outside of 30000 to 32767"},
		"a node's kubelet":          {func(l *LoadBalancer) { l.HealthCheckNodePort = 10250 }, ReasonPortRefused, "spec.healthCheckNodePort: port 10250 is outside"},
		"no NodePort":               {func(l *LoadBalancer) { l.EndpointPorts[0].Number = 0 }, ReasonNoNodePort, "allocateLoadBalancerNodePorts"},
		"not of type LoadBalancer":  {func(l *LoadBalancer) { l.Type = "ClusterIP" }, ReasonNotLoadBalancer, "ClusterIP"},
		"no Addresses":              {func(l *LoadBalancer) { l.Reference.Name = "nodes" }, ReasonAddressesNotFound, "tenant-a/nodes does not exist"},
		"another namespace":         {func(l *LoadBalancer) { l.Reference.Namespace = "tenant-b" }, ReasonReferenceNotAllowed, "tenant-b"},
		"loopback":                  {inline("127.0.0.1"), ReasonEndpointRefused, "loopback"},
		"metadata service":          {inline("169.254.169.254"), ReasonEndpointRefused, "link-local"},
		"multicast":                 {inline("224.0.0.1"), ReasonEndpointRefused, "multicast"},
		"IPv4-mapped":               {inline("::ffff:198.51.100.11"), ReasonEndpointRefused, "IPv4-mapped"},
		"zone":                      {inline("fe80::1%eth0"), ReasonEndpointRefused, "zone"},
		"forbidden by the operator": {inline("198.51.100.200"), ReasonEndpointRefused, "operator"},
		"outside the tenant's":      {inline("192.0.2.7"), ReasonEndpointRefused, "backendCIDRs"},
		"a name":                    {inline("kubernetes.default.svc"), ReasonEndpointRefused, "not an IP address"},
		"no VIP as a local node":    {local("203.0.113.9"), ReasonEndpointRefused, "external address"},
		"source range":              {func(l *LoadBalancer) { l.SourceRanges = []string{"192.0.2.0"} }, ReasonInvalidSourceRange, "192.0.2.0"},
		"129 source ranges":         {func(l *LoadBalancer) { l.SourceRanges = slices.Repeat([]string{"192.0.2.0/24"}, 129) }, ReasonTooManySourceRanges, "use 128 at most"},
		"257 ports":                 {func(l *LoadBalancer) { l.Ports = slices.Repeat(l.Ports[:1], 257) }, ReasonTooManyPorts, "use 256 at most"},
		"affinity":                  {func(l *LoadBalancer) { l.Affinity, l.AffinitySeconds = true, -1 }, ReasonInvalidAffinity, "timeoutSeconds"},
		"PROXY protocol":            {func(l *LoadBalancer) { l.ProxyProtocol = "v1" }, ReasonInvalidProxyProtocol, `spec.proxyProtocol is "v1": use v2`},
		"idle timeout":              {func(l *LoadBalancer) { l.IdleTimeout = "soon" }, ReasonInvalidIdleTimeout, `spec.idleTimeout is "soon": use 1s to 24h`},
	} {
		t.Run(name, func(t *testing.T) {
			h := testHub()
			h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
			h.SetLoadBalancer(lb("tenant-a", "good", vips("203.0.113.99")))
			h.SetLoadBalancer(lb("tenant-a", "web", c.change))
			got := snapshot(t, h)
			if strings.Contains(got, "owner=tenant-a/web") || !strings.Contains(got, "owner=tenant-a/good") {
				t.Errorf("served:\n%s", got)
			}
			problem, refused := Refused(h.Problems(model.ObjectName{Namespace: "tenant-a", Name: "web"}))
			if !refused || problem.Reason != c.reason || !strings.Contains(problem.Message, c.message) {
				t.Errorf("problem %+v, want %s with %q", problem, c.reason, c.message)
			}
		})
	}
}

func TestATenantMayHaveAnotherRangeOfPorts(t *testing.T) {
	for port, served := range map[int32]bool{19999: false, 20000: true, 20099: true, 20100: false, 30080: false} {
		h := testHub()
		h.SetTenant(Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}, BackendPorts: PortRange{20000, 20099}})
		h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
		h.SetLoadBalancer(lb("tenant-a", "web", func(l *LoadBalancer) { l.EndpointPorts[0].Number = port }))
		if got := strings.Contains(snapshot(t, h), "owner=tenant-a/web"); got != served {
			t.Errorf("port %d is served: %v", port, got)
		}
	}
}

func TestEachFrontendHasTheLimitsOfItsTenant(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-a", "web"))
	if got := snapshot(t, h); strings.Contains(got, "max-") {
		t.Errorf("there are limits although none is set: %s", got)
	}
	tenant := Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}, ConnectionsPerPort: 1000, NewConnectionsPerSecondPerPort: 50}
	h.SetTenant(tenant)
	if got := snapshot(t, h); strings.Count(got, "max-connections=1000 max-new-per-second=50 tenant=a") != strings.Count(got, "frontend ") {
		t.Error(got)
	}
	tenant.ConnectionsPerPort = 0
	h.SetTenant(tenant)
	if got := snapshot(t, h); strings.Contains(got, "max-connections") || !strings.Contains(got, "max-new-per-second=50") {
		t.Error(got)
	}
}

func TestEachFrontendHasTheIdleTimeoutOfItsLoadBalancer(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-a", "other", vips("203.0.113.9")))
	idle := func(timeout string) func(*LoadBalancer) {
		return func(l *LoadBalancer) {
			l.Ports, l.EndpointPorts = append(l.Ports, Port{"dns", 53, "UDP"}), append(l.EndpointPorts, Port{"dns", 30053, "UDP"})
			l.IdleTimeout = timeout
		}
	}
	for timeout, frontends := range map[string]int{"90s": 2, "1h30m": 2, "": 0} {
		h.SetLoadBalancer(lb("tenant-a", "web", idle(timeout)))
		got := snapshot(t, h)
		if n := strings.Count(got, " idle="); n != frontends || strings.Count(got, "frontend ") != 3 {
			t.Errorf("%q: %d frontends have one, want %d:\n%s", timeout, n, frontends, got)
		}
		if want, _ := ParseIdleTimeout(timeout); frontends > 0 && strings.Count(got, fmt.Sprintf(" idle=%s tenant=a", want)) != frontends {
			t.Errorf("%q:\n%s", timeout, got)
		}
	}
}

func TestOnlyPortsWithinTheLimitAreServed(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	name := model.ObjectName{Namespace: "tenant-a", Name: "web"}
	for _, c := range []struct {
		admitted *[]Port
		served   []string
	}{
		{nil, []string{"TCP 80", "UDP 80", "TCP 443"}},
		{&[]Port{{Number: 80}, {Number: 443, Protocol: "UDP"}}, []string{"TCP 80"}},
		{&[]Port{}, nil},
		{nil, []string{"TCP 80", "UDP 80", "TCP 443"}},
	} {
		h.SetLoadBalancer(lb("tenant-a", "web", func(l *LoadBalancer) {
			l.Ports = []Port{{Name: "h", Number: 80}, {Name: "q", Number: 80, Protocol: "UDP"}, {Name: "s", Number: 443}}
			l.EndpointPorts = []Port{{Name: "h", Number: 30080}, {Name: "q", Number: 30081, Protocol: "UDP"}, {Name: "s", Number: 30443}}
			l.AdmittedPorts = c.admitted
		}))
		h.Flush()
		var served []string
		for _, f := range h.Snapshot().Frontends {
			served = append(served, fmt.Sprint(f.Protocol, " ", f.Port))
		}
		slices.Sort(served)
		slices.Sort(c.served)
		problems := h.Problems(name)
		if !slices.Equal(served, c.served) || len(problems) != 3-len(c.served) {
			t.Fatalf("served %v, want %v; problems %+v", served, c.served, problems)
		}
		for _, p := range problems {
			if p.Reason != ReasonLimitReached || !p.Partial || !strings.Contains(p.Message, "Tenant a has as many ports as it may have (spec.limits.ports)") {
				t.Errorf("problem %+v", p)
			}
		}
	}
}

func TestALoadBalancerHasNoMoreEndpointsThanItsTenantMayHave(t *testing.T) {
	h := testHub()
	tenant := Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25"), netip.MustParsePrefix("2001:db8:1::/64")}, EndpointsPerLoadBalancer: 2}
	h.SetTenant(tenant)
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.13", "2001:db8:1::11", "198.51.100.12", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-a", "web", vips("203.0.113.1", "2001:db8:f::1")))
	h.SetLoadBalancer(lb("tenant-a", "own", vips("203.0.113.2"), func(l *LoadBalancer) {
		l.Reference, l.Addresses = nil, []Address{{IP: "198.51.100.23"}, {IP: "198.51.100.21"}, {IP: "198.51.100.22"}}
	}))
	got := snapshot(t, h)
	for address, there := range map[string]bool{"198.51.100.11": true, "198.51.100.12": true, "198.51.100.13": false, "2001:db8:1::11": true, "198.51.100.21": true, "198.51.100.22": true, "198.51.100.23": false} {
		if strings.Contains(got, address) != there {
			t.Errorf("%s: %v\n%s", address, !there, got)
		}
	}
	for _, name := range []string{"web", "own"} {
		problems := h.Problems(model.ObjectName{Namespace: "tenant-a", Name: name})
		if len(problems) != 1 || problems[0].Reason != ReasonLimitReached || !problems[0].Partial || !strings.Contains(problems[0].Message, "1 more than the 2 of each family that Tenant a may have") {
			t.Errorf("%s: problems %+v", name, problems)
		}
	}
	tenant.EndpointsPerLoadBalancer = 0
	h.SetTenant(tenant)
	if got := snapshot(t, h); !strings.Contains(got, "198.51.100.13") || !strings.Contains(got, "198.51.100.23") {
		t.Error(got)
	}
}

func TestTheLimitOfEndpointsThatAreNotSharedIsLower(t *testing.T) {
	listed := []Address{{IP: "198.51.100.11"}, {IP: "198.51.100.12"}, {IP: "198.51.100.13"}}
	forms := map[string]struct {
		of      func(*LoadBalancer)
		bounded bool
	}{
		"shared":                {func(*LoadBalancer) {}, false},
		"of its own":            {func(l *LoadBalancer) { l.Reference, l.Addresses = nil, listed }, true},
		"local":                 {func(l *LoadBalancer) { l.LocalOnly, l.Local, l.HealthCheckNodePort = true, &listed, 30999 }, true},
		"checked by its port":   {func(l *LoadBalancer) { l.LocalOnly, l.HealthCheckNodePort = true, 30999 }, true},
		"checked by a NodePort": {func(l *LoadBalancer) { l.LocalOnly = true }, true},
	}
	for name, form := range forms {
		h := testHub()
		tenant := Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}, OwnEndpointsPerLoadBalancer: 2}
		h.SetTenant(tenant)
		h.SetAddresses(addressesOf("tenant-a", "198.51.100.11", "198.51.100.12", "198.51.100.13"))
		object := lb("tenant-a", "web", form.of)
		h.SetLoadBalancer(object)
		got, found := snapshot(t, h), 0
		checked := Check(&object, &tenant, &Addresses{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "default"}, List: listed}, TargetFilter{})
		for _, problems := range [][]Problem{h.Problems(object.ObjectName), checked} {
			for _, p := range problems {
				if p.Reason == ReasonLimitReached && p.Partial && strings.Contains(p.Message, "1 more than the 2 of each family that Tenant a may have (spec.limits.endpointsPerLoadBalancer)") {
					found++
				}
			}
		}
		if served := strings.Contains(got, "198.51.100.13"); served == form.bounded || (found == 2) != form.bounded {
			t.Errorf("%s: served %v, the problem is reported %d times in %+v\n%s", name, served, found, checked, got)
		}
		tenant.EndpointsPerLoadBalancer = 3
		h.SetTenant(tenant)
		if got := snapshot(t, h); !strings.Contains(got, "198.51.100.13") {
			t.Errorf("%s: the tenant's limit is ignored\n%s", name, got)
		}
	}
}

func TestRefusedTargetsInAddressesAreLeftOutAndNamed(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-b", "127.0.0.1", "192.0.2.1", "203.0.113.7"))
	h.SetLoadBalancer(lb("tenant-b", "web"))
	got := snapshot(t, h)
	if strings.Count(got, "endpoint") != 1 || !strings.Contains(got, "192.0.2.1") {
		t.Error(got)
	}
	problems := h.Problems(model.ObjectName{Namespace: "tenant-b", Name: "web"})
	if len(problems) != 1 || !problems[0].Partial || !strings.Contains(problems[0].Message, "127.0.0.1") || !strings.Contains(problems[0].Message, "203.0.113.7") {
		t.Errorf("problems %+v", problems)
	}
}

func TestAFrontendIsServedForOneLoadBalancer(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-a", "two"))
	h.SetLoadBalancer(lb("tenant-a", "one"))
	if got := snapshot(t, h); strings.Count(got, "frontend") != 1 || !strings.Contains(got, "owner=tenant-a/one") {
		t.Error(got)
	}
	two := model.ObjectName{Namespace: "tenant-a", Name: "two"}
	if p := h.Problems(two); len(p) != 1 || p[0].Reason != ReasonConflict {
		t.Errorf("problems %+v", p)
	}
	h.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "one"})
	if got := snapshot(t, h); !strings.Contains(got, "owner=tenant-a/two") || len(h.Problems(two)) != 0 {
		t.Errorf("%s %v", got, h.Problems(two))
	}
}

func TestSourceRangesAreMaskedSortedAndByFamily(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-a", "web", vips("203.0.113.1", "2001:db8:f::1"), func(l *LoadBalancer) {
		l.SourceRanges = []string{"192.0.2.130/25", "192.0.2.200/32", "10.0.0.0/8", "192.0.2.128/26"}
	}))
	got := snapshot(t, h)
	if !strings.Contains(got, "203.0.113.1:80 pool=a/default.v4 target=30080 sources=[10.0.0.0/8 192.0.2.128/25]") || !strings.Contains(got, "[2001:db8:f::1]:80 pool=a/default.v6 target=30080 sources=[]") {
		t.Error(got)
	}
}

func TestPoolNamesAreShortWhateverTheObjectsAreCalled(t *testing.T) {
	h := NewTranslator()
	tenant := strings.Repeat("t", 56)
	h.SetTenant(Tenant{Name: tenant, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	for _, name := range []string{strings.Repeat("n", 253), strings.Repeat("n", 252) + "m"} {
		a := addressesOf("tenant-"+tenant, "198.51.100.11")
		a.Name = name
		h.SetAddresses(a)
		h.SetLoadBalancer(lb("tenant-"+tenant, name, func(l *LoadBalancer) {
			l.Reference.Name, l.LocalOnly, l.Ports[0].Number = name, true, int32(name[252])
		}))
	}
	h.Flush()
	pools := h.Snapshot().Pools
	if len(pools) != 2 || len(pools[0].ID) > 100 {
		t.Errorf("pools %v", pools)
	}
}

func TestATenantWithoutNodesHasAProblem(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a"))
	h.SetLoadBalancer(lb("tenant-a", "web"))
	if got := snapshot(t, h); strings.Contains(got, "endpoint") || !strings.Contains(got, "frontend") {
		t.Error(got)
	}
	problems := h.Problems(model.ObjectName{Namespace: "tenant-a", Name: "web"})
	if len(problems) != 1 || problems[0].Reason != ReasonNoNodes || !problems[0].Partial {
		t.Errorf("problems %+v", problems)
	}
}

func TestAnAddressOfAFamilyWithoutEndpointsIsAProblem(t *testing.T) {
	v6only := addressesOf("tenant-a", "2001:db8:1::11")
	tenant := Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}}
	own := func(l *LoadBalancer) { l.Reference, l.Addresses = nil, v6only.List }
	for name, c := range map[string]struct {
		lb   LoadBalancer
		want string
	}{
		"IPv4, by reference": {lb("tenant-a", "web"), "203.0.113.1 is not served"},
		"IPv4, by itself":    {lb("tenant-a", "web", own), "203.0.113.1 is not served"},
		"both":               {lb("tenant-a", "web", vips("203.0.113.1", "2001:db8:f::1")), "203.0.113.1 is not served"},
		"IPv4, local":        {lb("tenant-a", "web", func(l *LoadBalancer) { l.LocalOnly, l.Local = true, &v6only.List }), "203.0.113.1 is not served"},
		"IPv6":               {lb("tenant-a", "web", vips("2001:db8:f::1")), ""},
		"none is on record":  {lb("tenant-a", "web", vips()), ""},
		"IPv6, by itself":    {lb("tenant-a", "web", own, vips("2001:db8:f::1")), ""},
		"Local is not asked for": {lb("tenant-a", "web", vips("2001:db8:f::1"), func(l *LoadBalancer) {
			l.Local = &[]Address{{IP: "198.51.100.11"}}
		}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var found []string
			for _, p := range Check(&c.lb, &tenant, &v6only, TargetFilter{}) {
				if p.Reason == ReasonNoNodesOfFamily {
					found = append(found, p.Message)
				}
			}
			if got := strings.Join(found, "; "); (c.want == "") != (got == "") || !strings.Contains(got, c.want) || len(found) > 1 {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if got := c.lb.endpointFamilies; len(got) != 1 || got[0] != ipam.IPv6 {
				t.Errorf("endpoints of %v", got)
			}
		})
	}
}

// An external address works only if nodes of its family take traffic.
func TestAnAddressOfAFamilyThatNoNodeHasIsAProblem(t *testing.T) {
	both := func(l *LoadBalancer) { l.VIPs = append(l.VIPs, netip.MustParseAddr("2001:db8:f::1")) }
	local := func(l *LoadBalancer) { l.LocalOnly, l.Local = true, &[]Address{{IP: "198.51.100.12"}} }
	inline := func(l *LoadBalancer) { l.Reference, l.Addresses = nil, []Address{{IP: "2001:db8:1::11"}} }
	for name, c := range map[string]struct {
		lb    LoadBalancer
		nodes []string
		named []string
	}{
		"nodes of both":               {lb("tenant-a", "web", both), []string{"198.51.100.11", "2001:db8:1::11"}, nil},
		"nodes of IPv4 alone":         {lb("tenant-a", "web", both), []string{"198.51.100.11"}, []string{"2001:db8:f::1"}},
		"the IPv6 address is refused": {lb("tenant-a", "web", both), []string{"198.51.100.11", "2001:db8:2::11"}, []string{"2001:db8:f::1"}},
		"nodes of IPv6 alone":         {lb("tenant-a", "web"), []string{"2001:db8:1::11"}, []string{"203.0.113.1"}},
		"no pod on a node with IPv6":  {lb("tenant-a", "web", both, local), []string{"198.51.100.11", "2001:db8:1::11"}, []string{"2001:db8:f::1"}},
		"targets of its own":          {lb("tenant-a", "web", both, inline), nil, []string{"203.0.113.1"}},
		"no nodes, another problem":   {lb("tenant-a", "web", both), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := testHub()
			h.SetAddresses(addressesOf("tenant-a", c.nodes...))
			h.SetLoadBalancer(c.lb)
			h.Flush()
			var named []string
			for i, p := range h.Problems(c.lb.ObjectName) {
				if p.Reason != ReasonNoNodesOfFamily {
					continue
				}
				if i != len(named) || !p.Partial {
					t.Errorf("the problem is not first, or not partial: %+v", p)
				}
				address, _, _ := strings.Cut(p.Message, " ")
				named = append(named, address)
			}
			if !slices.Equal(named, c.named) {
				t.Errorf("named %v, not %v", named, c.named)
			}
		})
	}
}

// Any order of changes, flushed at any moments, ends in the same model as one flush of the final objects, and the sum of
// the deltas is that model.
func TestIncrementalTranslationEndsInTheSameModel(t *testing.T) {
	for seed := range int64(50) {
		random := rand.New(rand.NewSource(seed))
		h, sum := testHub(), model.NewDigests()
		apply := func(c Changes) {
			for _, p := range c.Model.UpsertPools {
				sum.Pools[p.ID] = p.Digest()
			}
			for _, f := range c.Model.UpsertFrontends {
				sum.Frontends[f.FrontendKey] = f.Digest()
			}
			for _, key := range c.Model.DeleteFrontends {
				delete(sum.Frontends, key)
			}
			for _, id := range c.Model.DeletePools {
				delete(sum.Pools, id)
			}
		}
		lbs, addresses := map[model.ObjectName]LoadBalancer{}, map[model.ObjectName]Addresses{}
		for range 300 {
			ns := []string{"tenant-a", "tenant-b", "tenant-c"}[random.Intn(3)]
			name := model.ObjectName{Namespace: ns, Name: fmt.Sprint(random.Intn(8))}
			switch random.Intn(6) {
			case 0:
				delete(lbs, name)
				h.DeleteLoadBalancer(name)
			case 1:
				a := addressesOf(ns, fmt.Sprintf("198.51.100.%d", random.Intn(4)), fmt.Sprintf("192.0.2.%d", random.Intn(4)))
				addresses[a.ObjectName] = a
				h.SetAddresses(a)
			case 2:
				if random.Intn(4) == 0 {
					name.Name = "default"
					delete(addresses, name)
					h.DeleteAddresses(name)
				}
			case 3:
				apply(h.Flush())
			default:
				l := lb(ns, name.Name, vips(fmt.Sprintf("203.0.113.%d", random.Intn(3))), func(l *LoadBalancer) {
					l.Ports[0].Number = int32(80 + random.Intn(2))
					if random.Intn(3) == 0 {
						local(fmt.Sprintf("198.51.100.%d", random.Intn(3)))(l)
					}
				})
				lbs[name] = l
				h.SetLoadBalancer(l)
			}
		}
		apply(h.Flush())
		full := testHub()
		for _, a := range addresses {
			full.SetAddresses(a)
		}
		for _, l := range lbs {
			full.SetLoadBalancer(l)
		}
		if got, expected := snapshot(t, h), snapshot(t, full); got != expected {
			t.Fatalf("seed %d: incremental\n%s\nfull\n%s", seed, got, expected)
		}
		if d := model.Difference(sum, h.Snapshot()); !d.Empty() {
			t.Fatalf("seed %d: the deltas miss %+v", seed, d)
		}
	}
}

func TestAMessageNamesAFewTargetsHoweverManyAreRefused(t *testing.T) {
	h := testHub()
	ips := []string{"198.51.100.11"}
	for i := range 4000 {
		ips = append(ips, netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}).String())
	}
	h.SetAddresses(addressesOf("tenant-a", ips...))
	h.SetLoadBalancer(lb("tenant-a", "web"))
	h.Flush()
	problems := h.Problems(model.ObjectName{Namespace: "tenant-a", Name: "web"})
	if len(problems) != 1 || len(problems[0].Message) > 1024 || !strings.HasSuffix(problems[0].Message, "; and 3995 more") {
		t.Errorf("%.2000v", problems)
	}
}

func TestAMessageNamesAFewOwnTargetsHoweverManyAreRefused(t *testing.T) {
	h := testHub()
	h.SetLoadBalancer(lb("tenant-a", "web", func(l *LoadBalancer) {
		l.Reference = nil
		for i := range 5000 {
			l.Addresses = append(l.Addresses, Address{IP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}).String()})
		}
	}))
	h.Flush()
	problems := h.Problems(model.ObjectName{Namespace: "tenant-a", Name: "web"})
	if len(problems) != 6 || problems[0].Field != "spec.endpoints[0].addresses[0].ip" || problems[5].Message != "spec.endpoints[0].addresses: 4995 more are refused" {
		t.Errorf("%.2000v", problems)
	}
	if kept := len(h.lbs[model.ObjectName{Namespace: "tenant-a", Name: "web"}].parsed.problems); kept > 6 {
		t.Errorf("%d problems are kept", kept)
	}
}
