package corecheck

import (
	"fmt"
	"net/netip"

	"pgregory.net/rapid"

	"kubelb.k8c.io/core/explain"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// The generators draw from small sets, so that names and addresses collide. Some values are invalid.

var (
	tenantNames   = rapid.SampledFrom([]string{"a", "b"})
	namespaces    = rapid.SampledFrom([]string{"tenant-a", "tenant-b", "tenant-a", "tenant-b", "tenant-c", "kube-system"})
	objectNames   = rapid.SampledFrom([]string{"one", "two", "three", "four", "five", "default"})
	portNames     = rapid.SampledFrom([]string{"", "http", "https", "dns"})
	protocols     = rapid.SampledFrom([]string{"TCP", "UDP", "", "SCTP", "tcp"})
	goodProtocols = rapid.SampledFrom([]string{"TCP", "UDP"})
	goodPorts     = rapid.SampledFrom([]int32{80, 443, 53, 1, 65535})
	goodRanges    = rapid.SampledFrom([]string{"192.0.2.0/24", "192.0.2.128/25", "10.0.0.1/8", "0.0.0.0/0", "2001:db8:c::/48"})
	portNumbers   = rapid.SampledFrom([]int32{80, 80, 443, 53, 1, 65535, 0, -1, 65536, 2147483647})
	nodePorts     = rapid.SampledFrom([]int32{30080, 30443, 30053, 32767, 0, 65536, -5})
	// Addresses of nodes, some of which no tenant may target.
	targetIPs = rapid.SampledFrom([]string{"198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.200", "192.0.2.1", "2001:db8:1::11", "2001:db8:1::12",
		"127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "fe80::1%eth0", "::ffff:198.51.100.11", "203.0.113.1", "203.0.113.200", "64:ff9b::1", "10.0.0.1", "nonsense", ""})
	goodIPs        = rapid.SampledFrom([]string{"198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.14", "2001:db8:1::11", "2001:db8:1::12"})
	externalIPs    = rapid.SampledFrom([]string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.9", "192.0.2.77", "2001:db8:f::1", "2001:db8:f::2"})
	sourceTexts    = rapid.SampledFrom([]string{"192.0.2.0/24", "192.0.2.128/25", "10.0.0.1/8", "0.0.0.0/0", "::/0", "2001:db8:c::/48", "192.0.2.0", "nonsense", "::ffff:1.2.3.4/120"})
	families       = rapid.SampledFrom([]ipam.Family{ipam.IPv4, ipam.IPv6})
	policies       = rapid.SampledFrom([]ipam.Policy{"", "", ipam.SingleStack, ipam.PreferDualStack, ipam.RequireDualStack, "Triple"})
	forwarding     = rapid.SampledFrom([]string{"", "", "nat", "transparent", "direct", "teleport"})
	proxyProtocols = rapid.SampledFrom([]string{"", "v2", "v1"})
	idleTimeouts   = rapid.SampledFrom([]string{"", "10m", "1s", "24h", "25h", "soon"})
	affinityTimes  = rapid.SampledFrom([]int32{0, 1, 90, 10800, 86400, 86401, -1})
	healthPorts    = rapid.SampledFrom([]int32{0, 0, 31000, 31001, 70000, -1})
	tenantCIDRs    = rapid.SampledFrom([]string{"198.51.100.0/25", "198.51.100.0/24", "2001:db8:1::/64", "192.0.2.0/28", "0.0.0.0/0", "::/0"})
	poolTexts      = rapid.SampledFrom([]string{"203.0.113.0/30", "203.0.113.4/31", "203.0.113.8-203.0.113.9", "2001:db8:f::/126", "203.0.113.0/29", "nonsense", "203.0.113.9-203.0.113.1"})
)

// upTo draws a list of at most n.
func upTo[T any](t *rapid.T, n int, g *rapid.Generator[T], label string) []T {
	return rapid.SliceOfN(g, 0, n).Draw(t, label)
}

// unique keeps the first item of each key.
func unique[T any, K comparable](list []T, key func(T) K) []T {
	seen := map[K]bool{}
	var out []T
	for _, item := range list {
		if !seen[key(item)] {
			out = append(out, item)
		}
		seen[key(item)] = true
	}
	return out
}

func prefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func tenants() *rapid.Generator[translate.Tenant] {
	return rapid.Custom(func(t *rapid.T) translate.Tenant {
		cidrs := []string{"198.51.100.0/24", "2001:db8:1::/64"}
		if oneIn(t, 4, "narrow") {
			cidrs = upTo(t, 3, tenantCIDRs, "backendCIDRs")
		}
		return translate.Tenant{Name: tenantNames.Draw(t, "name"), BackendCIDRs: prefixes(cidrs), Disabled: oneIn(t, 10, "disabled")}
	})
}

func targetLists() *rapid.Generator[[]translate.Address] {
	good := rapid.Custom(func(t *rapid.T) translate.Address { return translate.Address{IP: goodIPs.Draw(t, "ip")} })
	mixed := rapid.Custom(func(t *rapid.T) translate.Address {
		if oneIn(t, 20, "named") {
			return translate.Address{Hostname: "node.example.com"}
		}
		return translate.Address{IP: rarely(t, targetIPs, goodIPs.Draw(t, "ip"))}
	})
	return rapid.Custom(func(t *rapid.T) []translate.Address {
		switch {
		case oneIn(t, 4, "mixed"):
			return rapid.SliceOfN(mixed, 1, 5).Draw(t, "addresses")
		case oneIn(t, 6, "empty"):
			return nil
		}
		return rapid.SliceOfN(good, 2, 5).Draw(t, "addresses")
	})
}

func addressesObjects() *rapid.Generator[translate.Addresses] {
	return rapid.Custom(func(t *rapid.T) translate.Addresses {
		name := "default"
		if oneIn(t, 5, "named") {
			name = objectNames.Draw(t, "name")
		}
		return translate.Addresses{ObjectName: model.ObjectName{Namespace: namespaces.Draw(t, "namespace"), Name: name}, List: targetLists().Draw(t, "list")}
	})
}

func loadBalancers() *rapid.Generator[translate.LoadBalancer] {
	return rapid.Custom(func(t *rapid.T) translate.LoadBalancer {
		lb := translate.LoadBalancer{
			ObjectName: model.ObjectName{Namespace: namespaces.Draw(t, "namespace"), Name: objectNames.Draw(t, "name")},
			Type:       rarely(t, rapid.SampledFrom([]string{"NodePort", ""}), "LoadBalancer"),
			LocalOnly:  rapid.Bool().Draw(t, "localOnly"), Affinity: rapid.Bool().Draw(t, "affinity"), AffinitySeconds: rarely(t, affinityTimes, 0),
			FamilyPolicy: rarely(t, policies, ""), Forwarding: rarely(t, forwarding, ""), ProxyProtocol: rarely(t, proxyProtocols, ""), HealthCheckNodePort: rarely(t, healthPorts, 31000),
			IdleTimeout:  rarely(t, idleTimeouts, ""),
			SourceRanges: sourceRanges(t), Families: upTo(t, 2, families, "families"),
		}
		for range rapid.IntRange(1, 3).Draw(t, "ports") {
			p := translate.Port{Name: portNames.Draw(t, "name"), Number: rarely(t, portNumbers, goodPorts.Draw(t, "port")), Protocol: rarely(t, protocols, goodProtocols.Draw(t, "protocol"))}
			lb.Ports = append(lb.Ports, p)
			if !oneIn(t, 20, "unmatched") {
				p.Number = rarely(t, nodePorts, 30080)
				lb.EndpointPorts = append(lb.EndpointPorts, p)
			}
		}
		if oneIn(t, 4, "inline") {
			lb.Addresses = targetLists().Draw(t, "addresses")
		} else {
			lb.Reference = &model.ObjectName{Namespace: rarely(t, namespaces, ""), Name: "default"}
		}
		if oneIn(t, 3, "local") {
			list := targetLists().Draw(t, "localAddresses")
			lb.Local = &list
		}
		for _, text := range upTo(t, 2, externalIPs, "vips") {
			lb.VIPs = append(lb.VIPs, netip.MustParseAddr(text))
		}
		if oneIn(t, 3, "shares") {
			lb.SharingKey = rapid.SampledFrom([]string{"one", "two"}).Draw(t, "sharingKey")
		}
		if oneIn(t, 5, "asks") {
			lb.Requested = []netip.Addr{netip.MustParseAddr(externalIPs.Draw(t, "requested"))}
		}
		return lb
	})
}

// oneIn is true in at most one of n cases: drawn numbers tend to be small.
func oneIn(t *rapid.T, n int, label string) bool { return rapid.IntRange(1, n).Draw(t, label) == n }

// rarely draws from g in one of ten cases, so that most objects are valid.
func rarely[T any](t *rapid.T, g *rapid.Generator[T], otherwise T) T {
	if oneIn(t, 10, "rarely") {
		return g.Draw(t, "odd")
	}
	return otherwise
}

func sourceRanges(t *rapid.T) []string {
	if oneIn(t, 3, "restricted") {
		return upTo(t, 2, rapid.Custom(func(t *rapid.T) string { return rarely(t, sourceTexts, goodRanges.Draw(t, "range")) }), "sourceRanges")
	}
	return nil
}

func services() *rapid.Generator[translate.Service] {
	return rapid.Custom(func(t *rapid.T) translate.Service {
		name := objectNames.Draw(t, "name")
		s := translate.Service{Namespace: "shop", Name: name, UID: "uid-" + name, Type: rarely(t, rapid.SampledFrom([]string{"ClusterIP", ""}), "LoadBalancer"),
			Headless: oneIn(t, 20, "headless"), LocalOnly: rapid.Bool().Draw(t, "localOnly"), Affinity: rapid.Bool().Draw(t, "affinity"),
			AffinitySeconds: rarely(t, affinityTimes, 10800), SourceRanges: sourceRanges(t), Families: upTo(t, 2, families, "families"),
			FamilyPolicy: rarely(t, policies, ""), LoadBalancerIP: rarely(t, externalIPs, ""), HealthCheckNodePort: rarely(t, healthPorts, 31000), Forwarding: rarely(t, forwarding, ""), ProxyProtocol: rarely(t, proxyProtocols, ""), IdleTimeout: rarely(t, idleTimeouts, "")}
		if oneIn(t, 5, "classified") {
			class := rapid.SampledFrom([]string{"kubelb", "example.com/other"}).Draw(t, "class")
			s.Class = &class
		}
		for range rapid.IntRange(1, 3).Draw(t, "ports") {
			s.Ports = append(s.Ports, translate.ServicePort{Name: portNames.Draw(t, "name"), Protocol: rarely(t, protocols, goodProtocols.Draw(t, "protocol")), Port: rarely(t, portNumbers, goodPorts.Draw(t, "port")), NodePort: rarely(t, nodePorts, 30080)})
		}
		return s
	})
}

func nodes() *rapid.Generator[translate.Node] {
	return rapid.Custom(func(t *rapid.T) translate.Node {
		n := translate.Node{Name: fmt.Sprintf("n%d", rapid.IntRange(1, 5).Draw(t, "number")), Deleting: oneIn(t, 10, "deleting")}
		for _, ip := range rapid.SliceOfN(goodIPs, 1, 2).Draw(t, "addresses") {
			n.Addresses = append(n.Addresses, translate.NodeAddress{Type: rarely(t, rapid.SampledFrom([]string{"ExternalIP", "Hostname"}), "InternalIP"), Address: ip})
		}
		if oneIn(t, 6, "labelled") {
			n.Labels = map[string]string{"node.kubernetes.io/exclude-from-external-load-balancers": rapid.SampledFrom([]string{"", "true", "false", "maybe"}).Draw(t, "value")}
		}
		n.Taints = upTo(t, 1, rapid.SampledFrom([]string{"ToBeDeletedByClusterAutoscaler", "node.kubernetes.io/not-ready"}), "taints")
		return n
	})
}

func clusters() *rapid.Generator[explain.Cluster] {
	return rapid.Custom(func(t *rapid.T) explain.Cluster {
		c := explain.Cluster{Tenant: tenantNames.Draw(t, "tenant"), ClassRequired: oneIn(t, 4, "classRequired"),
			NodeAddressType: rarely(t, rapid.SampledFrom([]string{"ExternalIP", "Hostname"}), "")}
		c.Services = unique(rapid.SliceOfN(services(), 1, 5).Draw(t, "services"), func(s translate.Service) string { return s.Name })
		c.Nodes = unique(rapid.SliceOfN(nodes(), 1, 5).Draw(t, "nodes"), func(n translate.Node) string { return n.Name })
		for range rapid.IntRange(0, 4).Draw(t, "slices") {
			s := explain.EndpointSlice{Namespace: "shop", Service: objectNames.Draw(t, "service")}
			for range rapid.IntRange(0, 3).Draw(t, "endpoints") {
				s.Endpoints = append(s.Endpoints, translate.SliceEndpoint{Node: fmt.Sprintf("n%d", rapid.IntRange(1, 6).Draw(t, "node")),
					Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving"), Terminating: rapid.Bool().Draw(t, "terminating")})
			}
			c.EndpointSlices = append(c.EndpointSlices, s)
		}
		return c
	})
}

func forbidden(t *rapid.T) []netip.Prefix {
	if oneIn(t, 3, "forbidden") {
		return prefixes([]string{"198.51.100.13/32"})
	}
	return nil
}

// inputs generates documents in which no name occurs twice.
func inputs() *rapid.Generator[explain.Input] {
	return rapid.Custom(func(t *rapid.T) explain.Input {
		in := explain.Input{Version: explain.Version,
			Clusters:  unique(upTo(t, 2, clusters(), "clusters"), func(c explain.Cluster) string { return c.Tenant }),
			Tenants:   unique(rapid.SliceOfN(tenants(), 2, 4).Draw(t, "tenants"), func(t translate.Tenant) string { return t.Name }),
			Forbidden: forbidden(t),
		}
		for i, text := range append(upTo(t, 3, poolTexts, "pools"), "203.0.113.0/28", "2001:db8:f::/124") {
			var poolTenants []string
			if oneIn(t, 5, "private") {
				poolTenants = []string{tenantNames.Draw(t, "tenant")}
			}
			in.AddressPools = append(in.AddressPools, explain.AddressPool{Name: fmt.Sprintf("pool-%d", i), Addresses: []string{text}, Tenants: poolTenants, AutoAssign: !oneIn(t, 5, "reserved"), AvoidNetworkAddresses: rapid.Bool().Draw(t, "avoid")})
		}
		clusterNamespaces := map[string]bool{}
		for _, c := range in.Clusters {
			clusterNamespaces["tenant-"+c.Tenant] = true
		}
		all := rapid.SliceOfN(addressesObjects(), 0, 3).Draw(t, "addresses")
		for _, namespace := range []string{"tenant-a", "tenant-b"} {
			if !oneIn(t, 6, "missing") {
				all = append(all, translate.Addresses{ObjectName: model.ObjectName{Namespace: namespace, Name: "default"}, List: targetLists().Draw(t, "list")})
			}
		}
		for _, a := range unique(all, func(a translate.Addresses) model.ObjectName { return a.ObjectName }) {
			if a.Name != "default" || !clusterNamespaces[a.Namespace] {
				in.Addresses = append(in.Addresses, a)
			}
		}
		in.LoadBalancers = unique(rapid.SliceOfN(loadBalancers(), 1, 8).Draw(t, "loadBalancers"), func(lb translate.LoadBalancer) model.ObjectName { return lb.ObjectName })
		for _, text := range unique(upTo(t, 3, goodIPs, "health"), func(s string) string { return s }) {
			in.Health = append(in.Health, explain.Health{Address: netip.MustParseAddr(text), Port: uint16(rapid.SampledFrom([]int{0, 31000, 30080}).Draw(t, "port")),
				State: rapid.SampledFrom([]model.EndpointState{model.Active, model.Draining, model.Unhealthy}).Draw(t, "state"), Weight: uint16(rapid.IntRange(0, 3).Draw(t, "weight"))})
		}
		return in
	})
}
