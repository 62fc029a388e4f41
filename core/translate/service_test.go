package translate

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"kubelb.k8c.io/core/model"
)

// Address plan: nodes n1 198.51.100.11 and 2001:db8:1::11, n2 ….12 and ::12, n3 ….13 and ::13.
func nodes(names ...string) []Node {
	var out []Node
	for _, name := range names {
		out = append(out, Node{Name: name, Addresses: []NodeAddress{
			{"InternalIP", "198.51.100.1" + name[1:]}, {"InternalIP", "2001:db8:1::1" + name[1:]}, {"Hostname", name},
		}})
	}
	return out
}

func byName(list []Node) map[string]Node {
	out := map[string]Node{}
	for _, n := range list {
		out[n.Name] = n
	}
	return out
}

func text(addresses []Address) string {
	out := ""
	for _, a := range addresses {
		out += a.IP + a.Hostname + " "
	}
	return out
}

func TestOwns(t *testing.T) {
	ours, foreign := Class, "example.com/other"
	for _, c := range []struct {
		kind     string
		class    *string
		required bool
		want     bool
	}{
		{"LoadBalancer", nil, false, true},
		{"LoadBalancer", nil, true, false},
		{"LoadBalancer", &ours, false, true},
		{"LoadBalancer", &ours, true, true},
		{"LoadBalancer", &foreign, false, false},
		{"LoadBalancer", &foreign, true, false},
		{"ClusterIP", nil, false, false},
		{"NodePort", &ours, true, false},
	} {
		if got := Owns(Service{Type: c.kind, Class: c.class}, c.required); got != c.want {
			t.Errorf("%+v: got %v", c, got)
		}
	}
}

func TestEligible(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Node)
		want   bool
	}{
		"plain":                  {func(*Node) {}, true},
		"deleting":               {func(n *Node) { n.Deleting = true }, false},
		"autoscaler's taint":     {func(n *Node) { n.Taints = []string{toBeDeletedTaint} }, false},
		"another taint":          {func(n *Node) { n.Taints = []string{"node.kubernetes.io/not-ready"} }, true},
		"excluded, empty value":  {func(n *Node) { n.Labels = map[string]string{excludeLabel: ""} }, false},
		"excluded=true":          {func(n *Node) { n.Labels = map[string]string{excludeLabel: "true"} }, false},
		"excluded=false":         {func(n *Node) { n.Labels = map[string]string{excludeLabel: "false"} }, true},
		"excluded=unparsable":    {func(n *Node) { n.Labels = map[string]string{excludeLabel: "maybe"} }, false},
		"cordoned is no barrier": {func(n *Node) { n.Taints = []string{"node.kubernetes.io/unschedulable"} }, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := nodes("n1")[0]
			c.change(&n)
			if got := Eligible(n); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestNodeAddressesAreSortedAndOfOneType(t *testing.T) {
	if got := text(NodeAddresses(nodes("n2", "n1", "n1"), "InternalIP")); got != "198.51.100.11 198.51.100.12 2001:db8:1::11 2001:db8:1::12 " {
		t.Error(got)
	}
	if got := text(NodeAddresses(nodes("n2", "n1"), "Hostname")); got != "n1 n2 " {
		t.Error(got)
	}
	if got := NodeAddresses(nodes("n1"), "ExternalIP"); got == nil || len(got) != 0 {
		t.Errorf("no address of the type must give an empty list, got %#v", got)
	}
}

func TestLocalAddressesFollowReadyEndpoints(t *testing.T) {
	ep := func(node string, ready, serving, terminating bool) SliceEndpoint {
		return SliceEndpoint{node, ready, serving, terminating}
	}
	for name, c := range map[string]struct {
		endpoints []SliceEndpoint
		want      string
	}{
		"none":                             {nil, ""},
		"one ready":                        {[]SliceEndpoint{ep("n1", true, true, false)}, "198.51.100.11 2001:db8:1::11 "},
		"not ready":                        {[]SliceEndpoint{ep("n1", false, false, false)}, ""},
		"ready beside terminating":         {[]SliceEndpoint{ep("n1", false, true, true), ep("n2", true, true, false)}, "198.51.100.12 2001:db8:1::12 "},
		"all terminating and serving":      {[]SliceEndpoint{ep("n1", false, true, true)}, "198.51.100.11 2001:db8:1::11 "},
		"terminating and no longer serves": {[]SliceEndpoint{ep("n1", false, false, true)}, ""},
		"unknown node":                     {[]SliceEndpoint{ep("n9", true, true, false)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			lb, _ := DesiredLoadBalancer(Service{LocalOnly: true}, byName(nodes("n1", "n2")), []Slice{{c.endpoints}}, "InternalIP", "tenant-a")
			if lb.Local == nil || text(*lb.Local) != c.want {
				t.Errorf("got %v, want %q", lb.Local, c.want)
			}
		})
	}
}

func TestWish(t *testing.T) {
	s := Service{Namespace: "shop", Name: "web", UID: "uid-1", Type: "LoadBalancer", Ports: []ServicePort{
		{"HTTP", "TCP", 80, 30080}, {"", "UDP", 53, 30053}, {"sig", "SCTP", 5000, 30500}},
		SourceRangeAnnotation: "192.0.2.0/24, 2001:db8::/32", HealthCheckNodePort: 31000}
	lb, problems := DesiredLoadBalancer(s, byName(nodes("n1")), nil, "InternalIP", "tenant-a")
	if lb.ObjectName != (model.ObjectName{Namespace: "tenant-a", Name: "uid-1"}) || lb.Reference.Name != "default" || lb.Local != nil {
		t.Errorf("got %+v", lb)
	}
	if want := []Port{{"http", 80, "TCP"}, {"53-udp", 53, "UDP"}}; !reflect.DeepEqual(lb.Ports, want) {
		t.Errorf("ports %v, want %v", lb.Ports, want)
	}
	if want := []Port{{"http", 30080, "TCP"}, {"53-udp", 30053, "UDP"}}; !reflect.DeepEqual(lb.EndpointPorts, want) {
		t.Errorf("endpoint ports %v, want %v", lb.EndpointPorts, want)
	}
	if got := fmt.Sprint(lb.SourceRanges); got != "[192.0.2.0/24 2001:db8::/32]" {
		t.Errorf("source ranges %s", got)
	}
	if lb.HealthCheckNodePort != 0 {
		t.Error("a Cluster Service has no health port to travel with")
	}
	if len(problems) != 1 || problems[0].Reason != ReasonUnsupportedProtocol || !problems[0].Partial {
		t.Errorf("problems %v", problems)
	}
	s.Ports = s.Ports[2:]
	if _, problems = DesiredLoadBalancer(s, nil, nil, "InternalIP", "tenant-a"); len(problems) != 1 || problems[0].Partial {
		t.Errorf("SCTP alone: %v", problems)
	}
}

func TestOnlyInvalidSettingsAreLeftOut(t *testing.T) {
	s := Service{Name: "web", UID: "uid-1", Type: "LoadBalancer", LocalOnly: true, HealthCheckNodePort: 31000, AddressPool: "public", LoadBalancerIP: "nobody", Forwarding: "diretc", ProxyProtocol: "v3", IdleTimeout: "soon",
		Ports: []ServicePort{{"", "TCP", 80, 30080}, {"", "SCTP", 5000, 30500}}}
	lb, problems := DesiredLoadBalancer(s, nil, nil, "InternalIP", "tenant-a")
	if lb.Requested != nil || lb.Forwarding != "" || lb.ProxyProtocol != "" || lb.IdleTimeout != "" {
		t.Errorf("got %+v", lb)
	}
	if len(lb.Ports) != 1 || lb.Local == nil || lb.HealthCheckNodePort != 31000 || lb.AddressPool != "public" {
		t.Errorf("got %+v", lb)
	}
	var reasons []string
	for _, p := range problems {
		reasons = append(reasons, fmt.Sprint(p.Reason, " ", p.Partial))
	}
	if want := []string{"UnsupportedProtocol true", "InvalidAddress false", "InvalidForwarding false", "InvalidProxyProtocol false", "InvalidIdleTimeout false"}; !reflect.DeepEqual(reasons, want) {
		t.Errorf("problems %v, want %v", reasons, want)
	}
}

func TestAnIdleTimeoutIsBetweenASecondAndADay(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1s": time.Second, "90s": 90 * time.Second, "10m": 10 * time.Minute, "1h30m": 90 * time.Minute, "24h": 24 * time.Hour, "23h59m60s": 24 * time.Hour,
		"": 0, "0s": 0, "0": 0, "10": 0, "soon": 0, "h": 0, "24h1s": 0, "1.5h": 0, "1500ms": 0, "60000ms": 0, "-10m": 0, "+10m": 0, " 10m": 0, "1d": 0, "9999999999999h": 0, "00000000000000001s": 0,
	} {
		if got, valid := ParseIdleTimeout(text); got != want || valid != (want > 0) {
			t.Errorf("%q: got %s, %v, want %s", text, got, valid, want)
		}
	}
}

func TestRequestedAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		field, annotation, want, problem string
	}{
		"none":                     {"", "", "[]", ""},
		"the deprecated field":     {"203.0.113.5", "", "[203.0.113.5]", ""},
		"the annotation beats it":  {"203.0.113.5", "203.0.113.6, 2001:db8::6", "[203.0.113.6 2001:db8::6]", ""},
		"a name in the annotation": {"203.0.113.5", "example.com", "[]", "metadata.annotations." + AnnotationRequestedAddresses},
		"a name in the field":      {"example.com", "", "[]", "spec.loadBalancerIP"},
		"a zone":                   {"fe80::1%eth0", "", "[]", "spec.loadBalancerIP"},
	} {
		t.Run(name, func(t *testing.T) {
			lb, problems := DesiredLoadBalancer(Service{LoadBalancerIP: c.field, RequestedAnnotation: c.annotation, Ports: []ServicePort{{"", "", 80, 30080}}}, nil, nil, "InternalIP", "tenant-a")
			if got := fmt.Sprint(lb.Requested); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			problem, refused := Refused(problems)
			if refused != (c.problem != "") || problem.Field != c.problem {
				t.Errorf("problems %v", problems)
			}
		})
	}
}
