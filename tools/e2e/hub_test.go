package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hubAddresses returns the Addresses object of a tenant's nodes, as a CCM writes it.
func hubAddresses(namespace string) string {
	return fmt.Sprintf(`
---
apiVersion: kubelb.k8c.io/v1alpha1
kind: Addresses
metadata: {namespace: %s, name: default}
spec: {addresses: [{ip: 198.51.100.11}, {ip: 198.51.100.12}]}
`, namespace)
}

// hubLoadBalancer returns the LoadBalancer of a Service, as a CCM writes it. line is an additional line of its spec.
func hubLoadBalancer(namespace, name, line string) string {
	return fmt.Sprintf(`
---
apiVersion: kubelb.k8c.io/v1alpha1
kind: LoadBalancer
metadata: {namespace: %s, name: %s}
spec:
  type: LoadBalancer
  ports: [{name: http, port: 80, protocol: TCP}]
  endpoints: [{addressesReference: {name: default}, ports: [{name: http, port: 30080, protocol: TCP}]}]
  %s
`, namespace, name, line)
}

// hubIP waits until the LoadBalancer has an address that a gateway serves.
func hubIP(t *testing.T, namespace, name string) string {
	t.Helper()
	var ip string
	eventually(t, 15*time.Second, func() error {
		out, err := lab.Hub.Get(t.Context(), namespace, "loadbalancer/"+name, "{.status.loadBalancer.ingress[0].ip}")
		if ip = out; err != nil || ip == "" {
			conditions, _ := lab.Hub.Get(t.Context(), namespace, "loadbalancer/"+name, "{.status.conditions}")
			return fmt.Errorf("loadbalancer %s has no address (%v): %s", name, err, conditions)
		}
		return nil
	})
	return ip
}

// hubRefusal waits until a condition is false for a reason and returns its message.
func hubRefusal(t *testing.T, namespace, name, condition, reason string) string {
	t.Helper()
	var message string
	eventually(t, 15*time.Second, func() error {
		path := fmt.Sprintf(`{range .status.conditions[?(@.type==%q)]}{.status}|{.reason}|{.message}{end}`, condition)
		out, err := lab.Hub.Get(t.Context(), namespace, "loadbalancer/"+name, path)
		parts := strings.SplitN(out, "|", 3)
		if err != nil || len(parts) != 3 || parts[0] != "False" || parts[1] != reason {
			return fmt.Errorf("condition %s of %s: %q (%v), want False for %s", condition, name, out, err, reason)
		}
		message = parts[2]
		return nil
	})
	return message
}

// conntrackEntry matches a flow from the client to a VIP that a node answers, in the gateway's connection tracking.
var conntrackEntry = regexp.MustCompile(`(tcp|udp) .* src=\S+ dst=(\S+) sport=(\d+) dport=\d+ .*src=(\S+) dst=`)

// nodesOf returns the nodes that answer the client's flows to an address, by the client's port.
func nodesOf(t *testing.T, protocol, ip string) map[string]string {
	t.Helper()
	out, err := lab.OnGateway(t.Context(), "cat", "/proc/net/nf_conntrack")
	require.NoError(t, err)
	nodes := map[string]string{}
	for line := range strings.Lines(out) {
		m := conntrackEntry.FindStringSubmatch(line)
		if m == nil || m[1] != protocol {
			continue
		}
		vip, errVIP := netip.ParseAddr(m[2])
		node, errNode := netip.ParseAddr(m[4])
		if errVIP == nil && errNode == nil && vip == netip.MustParseAddr(ip) {
			nodes[m[3]] = node.String()
		}
	}
	return nodes
}

func TestInvalidInputIsRefusedWithAHelpfulMessage(t *testing.T) {
	independentOfDataplane(t)
	const ns = "tenant-a"
	apply(t, service("good", "ports: [{port: 80}]"))
	cleanUp(t, "service/good")
	externalIPs(t, "good", 2)
	inline := func(ip string) string {
		return fmt.Sprintf("endpoints: [{addresses: [{ip: %q}], ports: [{name: http, port: 30080}]}]", ip)
	}
	without := func(manifest, line string) string {
		require.Contains(t, manifest, line)
		return strings.Replace(manifest, line, "", 1)
	}
	const ports = "  ports: [{name: http, port: 80, protocol: TCP}]\n"
	const endpoints = "  endpoints: [{addressesReference: {name: default}, ports: [{name: http, port: 30080, protocol: TCP}]}]\n"
	lb := func(line string) string { return hubLoadBalancer(ns, "bad", line) }

	for name, c := range map[string]struct{ manifest, message string }{
		"port 0":        {without(lb("ports: [{port: 0}]"), ports), "should be greater than or equal to 1"},
		"port 70000":    {without(lb("ports: [{port: 70000}]"), ports), "should be less than or equal to 65535"},
		"SCTP":          {without(lb("ports: [{port: 80, protocol: SCTP}]"), ports), `supported values: "TCP", "UDP"`},
		"a port twice":  {without(lb("ports: [{port: 80, protocol: TCP}, {port: 80, protocol: TCP}]"), ports), `spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}`},
		"loopback":      {without(lb(inline("127.0.0.1")), endpoints), "loopback, link-local, multicast and unspecified addresses are refused"},
		"metadata":      {without(lb(inline("169.254.169.254")), endpoints), "loopback, link-local, multicast and unspecified addresses are refused"},
		"multicast":     {without(lb(inline("224.0.0.5")), endpoints), "loopback, link-local, multicast and unspecified addresses are refused"},
		"a name as ip":  {without(lb(inline("kubernetes.default.svc")), endpoints), "put a name into hostname"},
		"source range":  {lb("loadBalancerSourceRanges: [192.0.2.300/24]"), "each entry must be a CIDR"},
		"pool no range": {"apiVersion: kubelb.k8c.io/v1alpha1\nkind: AddressPool\nmetadata: {name: bad}\nspec: {addresses: [192.0.2.1]}", "each entry must be a CIDR (203.0.113.0/24) or a range"},
	} {
		t.Run("refused by kubectl apply: "+name, func(t *testing.T) {
			_, err := lab.Hub.Kubectl(t.Context(), c.manifest, "apply", "-f", "-")
			require.ErrorContains(t, err, c.message)
			t.Logf("%v", err)
		})
	}
	for name, c := range map[string]struct{ manifest, reason, message string }{
		"no ports":           {without(lb(""), ports), "NoPorts", "spec.ports is empty"},
		"no Addresses":       {strings.Replace(lb(""), "{name: default}", "{name: missing}", 1), "AddressesNotFound", "Addresses tenant-a/missing does not exist"},
		"another namespace":  {strings.Replace(lb(""), "{name: default}", "{name: default, namespace: tenant-b}", 1), "ReferenceNotAllowed", "leave it empty"},
		"outside the CIDRs":  {without(lb(inline("10.1.2.3")), endpoints), "EndpointRefused", "outside spec.backendCIDRs"},
		"one of the VIPs":    {without(lb(inline("192.0.2.201")), endpoints), "EndpointRefused", "would make a loop"},
		"endpoint port 0":    {strings.Replace(lb(""), "port: 30080", "port: 0", 1), "NoNodePort", "allocateLoadBalancerNodePorts"},
		"not a LoadBalancer": {strings.Replace(lb(""), "type: LoadBalancer", "type: ClusterIP", 1), "NotLoadBalancer", "only LoadBalancer"},
	} {
		t.Run("refused with a condition: "+name, func(t *testing.T) {
			applyToHub(t, c.manifest)
			message := hubRefusal(t, ns, "bad", "Accepted", c.reason)
			require.Contains(t, message, c.message)
			t.Logf("%s: %s", c.reason, message)
			hubKubectl(t, "-n", ns, "delete", "loadbalancer", "bad", "--timeout=30s")
		})
	}
	t.Run("an AddressPool that overlaps another", func(t *testing.T) {
		applyToHub(t, "apiVersion: kubelb.k8c.io/v1alpha1\nkind: AddressPool\nmetadata: {name: overlap}\nspec: {addresses: [192.0.2.240/28]}")
		cleanUpHub(t, "addresspool/overlap")
		eventually(t, 10*time.Second, func() error {
			out := hubGet(t, "default", "addresspool/overlap", `{range .status.conditions[?(@.type=="Ready")]}{.status}|{.reason}|{.message}{end}`)
			if !strings.HasPrefix(out, "False|Overlap|overlaps AddressPool public at 192.0.2.241-192.0.2.249") {
				return fmt.Errorf("condition %q", out)
			}
			t.Log(out)
			return nil
		})
	})
	t.Run("a Service with SCTP only", func(t *testing.T) {
		apply(t, service("sctp", "ports: [{port: 80, protocol: SCTP}]"))
		cleanUp(t, "service/sctp")
		eventually(t, 10*time.Second, func() error {
			if got := readyCondition(t, "sctp"); !strings.Contains(got, "UnsupportedProtocol") || !strings.Contains(events(t, "sctp"), "SyncLoadBalancerFailed") {
				return fmt.Errorf("condition %q, events %q", got, events(t, "sctp"))
			}
			return nil
		})
		t.Log(readyCondition(t, "sctp"))
	})
	t.Run("a Service without NodePorts", func(t *testing.T) {
		apply(t, service("noports", "allocateLoadBalancerNodePorts: false", "ports: [{port: 80}]"))
		cleanUp(t, "service/noports")
		eventually(t, 10*time.Second, func() error {
			if got := readyCondition(t, "noports"); !strings.Contains(got, "NoNodePort") {
				return fmt.Errorf("condition %q", got)
			}
			return nil
		})
	})
	// The tenant's other Service is still served.
	require.NotEmpty(t, externalIPs(t, "good", 2))
}

// A mistake of an operator: an AddressPool contains the nodes' network, with a gateway in it.
func TestAPoolOverTheNodesNetworkChangesNothing(t *testing.T) {
	apply(t, web("beside-pool", 1)+service("beside-pool", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "deployment/beside-pool", "service/beside-pool")
	ip := externalIPs(t, "beside-pool", 2)[0]
	reachesPods(t, ip, 80, 1)
	traffic := startTraffic(t, ip)
	applyToHub(t, "apiVersion: kubelb.k8c.io/v1alpha1\nkind: AddressPool\nmetadata: {name: wide}\nspec: {addresses: [198.51.100.0/24], autoAssign: false}")
	cleanUpHub(t, "addresspool/wide")
	ready := func(want string) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			out := hubGet(t, "default", "addresspool/wide", `{range .status.conditions[?(@.type=="Ready")]}{.status}|{.reason}|{.message}{end}`)
			if !strings.HasPrefix(out, want) {
				return fmt.Errorf("condition %q", out)
			}
			t.Log(out)
			return nil
		})
	}
	ready("False|CoversUsedAddresses|spec.addresses: covers 198.51.100.1 (gateway gateway), 198.51.100.11 (a node of Tenant a), 198.51.100.12 (a node of Tenant a)")
	time.Sleep(5 * time.Second) // also later effects would be seen
	require.Empty(t, traffic.stop(), "requests that failed")
	hubKubectl(t, "patch", "addresspool", "wide", "--type=merge", "-p", `{"spec":{"addresses":["198.51.100.128/25"]}}`)
	ready("True|Ready|addresses can be allocated")
	reachesPods(t, ip, 80, 1)
}

// The hub's schema would refuse the whole list of nodes for one invalid address. So the CCM leaves this address out, and reports it.
func TestAnInvalidNodeAddressDoesNotAffectOtherNodes(t *testing.T) {
	apply(t, web("odd-node", 1)+service("odd-node", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "deployment/odd-node", "service/odd-node", "node/odd")
	ip := externalIPs(t, "odd-node", 2)[0]
	reachesPods(t, ip, 80, 1)
	apply(t, "\n---\napiVersion: v1\nkind: Node\nmetadata: {name: odd}\n")
	kubectl(t, "patch", "node", "odd", "--subresource=status", "--type=merge", "-p",
		`{"status":{"addresses":[{"type":"InternalIP","address":"198.51.100.13"},{"type":"InternalIP","address":"169.254.1.0"}]}}`)
	const why = "node odd: 169.254.1.0 is a link-local address"
	waitForCondition(t, "odd-node", "served, but: left out of the targets: "+why)
	listed := func() string { return hubGet(t, "tenant-a", "addresses/default", "{.spec.addresses[*].ip}") }
	require.Contains(t, listed(), "198.51.100.13")
	require.Contains(t, kubectl(t, "get", "events", "--field-selector=involvedObject.name=odd,reason=NodesLeftOut", "-A", "-o", "jsonpath={.items[*].message}"), why)
	reachesPods(t, ip, 80, 1)
	kubectl(t, "delete", "node", "odd")
	eventually(t, 15*time.Second, func() error {
		if got := readyCondition(t, "odd-node"); strings.Contains(got, "left out") {
			return fmt.Errorf("condition %q", got)
		}
		return nil
	})
	require.NotContains(t, listed(), "198.51.100.13")
}
