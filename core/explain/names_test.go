package explain

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// twice returns the list with its first item again at its end.
func twice[T any](list []T) []T { return append(slices.Clone(list), list[0]) }

func TestTwoObjectsOfOneNameAreAnErrorThatNamesThem(t *testing.T) {
	hub := model.ObjectName{Namespace: "tenant-a", Name: "default"}
	for want, change := range map[string]func(*Input){
		"Cluster /a appears twice":                   func(in *Input) { in.Clusters = twice(in.Clusters) },
		"Service shop/web of tenant a appears twice": func(in *Input) { in.Clusters[0].Services = twice(in.Clusters[0].Services) },
		"Node /n1 of tenant a appears twice":         func(in *Input) { in.Clusters[0].Nodes = twice(in.Clusters[0].Nodes) },
		"Tenant /a appears twice":                    func(in *Input) { in.Tenants = twice(in.Tenants) },
		"AddressPool /public appears twice":          func(in *Input) { in.AddressPools = twice(in.AddressPools) },
		"Health /198.51.100.11:80 appears twice": func(in *Input) {
			in.Health = twice([]Health{{Address: netip.MustParseAddr("198.51.100.11"), Port: 80}})
		},
		"Addresses tenant-a/default appears twice": func(in *Input) { in.Addresses = []translate.Addresses{{ObjectName: hub}} },
		"LoadBalancer tenant-a/uid-1 appears twice": func(in *Input) {
			in.LoadBalancers = []translate.LoadBalancer{{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "uid-1"}, Type: "LoadBalancer"}}
		},
	} {
		in := shop()
		change(&in)
		out, err := Explain(in)
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if out.Version != "" || len(out.LoadBalancers) > 0 {
			t.Errorf("%s: with the error comes %+v", want, out)
		}
	}
}

func TestTheFirstOfSeveralErrorsDoesNotDependOnTheOrder(t *testing.T) {
	in := shop()
	in.Tenants = append(twice(in.Tenants), translate.Tenant{Name: "A"}, translate.Tenant{Name: "A"})
	_, first := Explain(in)
	slices.Reverse(in.Tenants)
	_, again := Explain(in)
	if first == nil || again == nil || first.Error() != "Tenant /A appears twice" || first.Error() != again.Error() {
		t.Errorf("%v, and %v", first, again)
	}
}

func TestTheOrderOfListsMakesNoDifference(t *testing.T) {
	in := shop()
	c := &in.Clusters[0]
	c.Nodes = append(c.Nodes, translate.Node{Name: "n2", Addresses: []translate.NodeAddress{{Type: "InternalIP", Address: "198.51.100.12"}}})
	c.Services = append(c.Services, translate.Service{Namespace: "shop", Name: "api", UID: "uid-2", Type: "LoadBalancer", Ports: []translate.ServicePort{{Port: 443, NodePort: 30443}}},
		translate.Service{Namespace: "other", Name: "web", UID: "uid-3", Type: "LoadBalancer", Ports: []translate.ServicePort{{Protocol: "SCTP", Port: 1}}})
	in.Tenants = append(in.Tenants, translate.Tenant{Name: "b", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	in.Clusters = append(in.Clusters, Cluster{Tenant: "b", Nodes: []translate.Node{{Name: "n1", Addresses: []translate.NodeAddress{{Type: "InternalIP", Address: "192.0.2.7"}}}}})
	answer := func() string {
		document, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		return string(JSON(document))
	}
	before := answer()
	slices.Reverse(in.Tenants)
	slices.Reverse(in.Clusters)
	for i := range in.Clusters {
		slices.Reverse(in.Clusters[i].Nodes)
		slices.Reverse(in.Clusters[i].Services)
	}
	if after := answer(); after != before {
		t.Errorf("got\n%s\nwant\n%s", after, before)
	}
	if !strings.Contains(before, "203.0.113.2") || strings.Contains(before, `"error"`) {
		t.Errorf("it has no second address: %s", before)
	}
}

func TestTheInputItselfIsNotChanged(t *testing.T) {
	in := shop()
	in.Clusters[0].Services = nil
	in.LoadBalancers = []translate.LoadBalancer{
		{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "z"}, Type: "LoadBalancer", Ports: []translate.Port{{Number: 80}}, EndpointPorts: []translate.Port{{Number: 30080}}, Reference: &model.ObjectName{Name: "default"}},
		{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "b"}, Type: "LoadBalancer", Ports: []translate.Port{{Number: 80}}, EndpointPorts: []translate.Port{{Number: 30080}}, Reference: &model.ObjectName{Name: "default"}},
	}
	out, err := Explain(in)
	if err != nil || out.LoadBalancers[0].Name != "b" || len(out.LoadBalancers[0].VIPs) != 1 {
		t.Fatalf("%+v: %v", out.LoadBalancers, err)
	}
	if in.LoadBalancers[0].Name != "z" || in.LoadBalancers[0].VIPs != nil || in.LoadBalancers[1].VIPs != nil {
		t.Errorf("the input is %+v now", in.LoadBalancers)
	}
}

func TestAPoolThatCannotGiveAddressesHasTheReason(t *testing.T) {
	for name, c := range map[string]struct {
		pool AddressPool
		want string
		says []string
	}{
		"it covers a node": {AddressPool{Name: "nodes", Addresses: []string{"198.51.100.0/24"}, AutoAssign: true}, translate.ReasonCoversUsed,
			[]string{"198.51.100.11 (a node of Tenant a)", "until spec.addresses leaves them out"}},
		"it overlaps": {AddressPool{Name: "again", Addresses: []string{"203.0.113.8/30"}}, "Overlap", []string{"overlaps AddressPool public at 203.0.113.8-203.0.113.11", "until one of them is changed"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := shop()
			in.AddressPools = append(in.AddressPools, c.pool)
			out, err := Explain(in)
			if err != nil || len(out.Problems) != 1 {
				t.Fatalf("%+v: %v", out.Problems, err)
			}
			p := out.Problems[0]
			if p.Kind != "AddressPool" || p.ObjectName.Name != c.pool.Name || p.Reason != c.want || p.Field != "spec.addresses" {
				t.Errorf("%+v", p)
			}
			for _, part := range c.says {
				if !strings.Contains(p.Message, part) {
					t.Errorf("%q does not say %q", p.Message, part)
				}
			}
			if !strings.Contains(out.Text, "frontend TCP 203.0.113.1:80") || !strings.Contains(out.Text, "endpoint 198.51.100.11") {
				t.Errorf("the other pool and the node are affected:\n%s", out.Text)
			}
		})
	}
}

func TestAddressesOnRecordStayWithTheirLoadBalancers(t *testing.T) {
	vip := netip.MustParseAddr("203.0.113.9")
	in := shop()
	in.Clusters[0].Services = nil
	web := translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "web"}, Type: "LoadBalancer", Ports: []translate.Port{{Number: 80}}, EndpointPorts: []translate.Port{{Number: 30080}},
		Reference: &model.ObjectName{Name: "default"}, VIPs: []netip.Addr{vip}}
	in.LoadBalancers = []translate.LoadBalancer{web}
	out, err := Explain(in)
	if err != nil || !slices.Equal(out.LoadBalancers[0].VIPs, []netip.Addr{vip}) || len(out.Problems) > 0 {
		t.Fatalf("%+v: %v", out, err)
	}
	in.Tenants = append(in.Tenants, translate.Tenant{Name: "b"})
	stolen := web
	stolen.ObjectName, stolen.Reference = model.ObjectName{Namespace: "tenant-b", Name: "web"}, nil
	in.LoadBalancers = append(in.LoadBalancers, stolen)
	if out, err = Explain(in); err != nil || len(out.Problems) == 0 {
		t.Fatalf("%+v: %v", out, err)
	}
	p := out.Problems[0]
	if p.Reason != translate.ReasonConflict || p.Field != "status.addresses" || p.Namespace != "tenant-b" || p.Message != "address 203.0.113.9 of tenant-b/web is held by tenant-a/web" {
		t.Errorf("%+v", p)
	}
	if strings.Count(out.Text, "frontend TCP 203.0.113.9:80") != 1 || !strings.Contains(out.Text, "tenant=a owner=tenant-a/web") {
		t.Error(out.Text)
	}
	if got := out.LoadBalancers[1]; got.Namespace != "tenant-b" || !slices.Equal(got.VIPs, []netip.Addr{netip.MustParseAddr("203.0.113.1")}) {
		t.Errorf("the other one has no address of its own: %+v", got)
	}
}

func TestALimitOfATenantIsAProblemOfWhatExceedsIt(t *testing.T) {
	one := int32(1)
	in := shop()
	in.Tenants[0].Limits = ipam.Limits{LoadBalancers: &one}
	in.Clusters[0].Services = append(in.Clusters[0].Services, translate.Service{Namespace: "shop", Name: "xtra", UID: "uid-2", Type: "LoadBalancer", Ports: []translate.ServicePort{{Port: 80, NodePort: 30081}}})
	out, err := Explain(in)
	if err != nil || len(out.Problems) != 1 {
		t.Fatalf("%+v: %v", out.Problems, err)
	}
	if p := out.Problems[0]; p.Kind != "LoadBalancer" || p.Name != "uid-2" || p.Reason != ipam.LimitReached || !strings.Contains(p.Message, "spec.limits.loadBalancers is 1") {
		t.Errorf("%+v", p)
	}
}
