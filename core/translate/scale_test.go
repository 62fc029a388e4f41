package translate

import (
	"fmt"
	"net/netip"
	"testing"

	"kubelb.k8c.io/core/model"
)

// fleet is one tenant of many Services on many nodes; one Service in ten has the traffic policy Local.
type fleet struct {
	services []Service
	nodes    []Node
	slices   [][]Slice
	tenant   Tenant
}

func newFleet(services, nodes int) fleet {
	f := fleet{tenant: Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, BackendPorts: PortRange{1, 65535}}}
	for i := range nodes {
		f.nodes = append(f.nodes, Node{Name: fmt.Sprintf("node-%04d", i), Labels: map[string]string{"kubernetes.io/os": "linux"},
			Addresses: []NodeAddress{{"InternalIP", fmt.Sprintf("10.1.%d.%d", i/250, 1+i%250)}, {"Hostname", fmt.Sprintf("node-%04d", i)}}})
	}
	for i := range services {
		s := Service{Namespace: "shop", Name: fmt.Sprintf("service-%05d", i), UID: fmt.Sprintf("uid-%05d", i), Type: "LoadBalancer",
			Ports: []ServicePort{{"http", "TCP", 80, int32(1 + i)}}}
		var endpoints []Slice
		if i%10 == 0 {
			s.LocalOnly, s.HealthCheckNodePort = true, int32(40001+i)
			endpoints = []Slice{{[]SliceEndpoint{{Node: f.nodes[i%nodes].Name, Ready: true, Serving: true}, {Node: f.nodes[(i+1)%nodes].Name, Ready: true, Serving: true}}}}
		}
		f.services, f.slices = append(f.services, s), append(f.slices, endpoints)
	}
	return f
}

// translate translates from Services and nodes to the model.
func (f fleet) translate() model.Snapshot {
	h := NewTranslator()
	h.SetTenant(f.tenant)
	h.SetAddresses(Addresses{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "default"}, List: NodeAddresses(f.nodes, "InternalIP")})
	byName := byName(f.nodes)
	vip := netip.MustParseAddr("203.0.0.1")
	for i, s := range f.services {
		lb, _ := DesiredLoadBalancer(s, byName, f.slices[i], "InternalIP", "tenant-a")
		lb.VIPs = []netip.Addr{vip}
		vip = vip.Next()
		h.SetLoadBalancer(lb)
	}
	h.Flush()
	return h.Snapshot()
}

func TestAFleetIsTranslated(t *testing.T) {
	f := newFleet(1000, 100)
	s := f.translate()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	// One pool that all share, and one for each Service of policy Local.
	if len(s.Frontends) != 1000 || len(s.Pools) != 101 {
		t.Errorf("%d frontends and %d pools, want 1000 and 101", len(s.Frontends), len(s.Pools))
	}
}

func BenchmarkTranslate(b *testing.B) {
	for _, size := range []struct{ services, nodes int }{{100, 100}, {1000, 1000}, {10000, 1000}} {
		b.Run(fmt.Sprintf("services=%d/nodes=%d", size.services, size.nodes), func(b *testing.B) {
			f := newFleet(size.services, size.nodes)
			b.ReportAllocs()
			for b.Loop() {
				f.translate()
			}
		})
	}
}
