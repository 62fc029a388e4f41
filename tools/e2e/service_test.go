package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/probe"
	"kubelb.k8c.io/tools/cluster"
)

// web returns a Deployment of agnhost whose replicas are spread over the nodes.
func web(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: %[1]s}}}]
      containers:
      - {name: web, image: "localhost/agnhost:1", imagePullPolicy: Never, args: [netexec, --http-port=8080, --udp-port=8053]}
`, name, replicas)
}

func TestBasicServiceGetsAnAddressAndRealTraffic(t *testing.T) {
	apply(t, web("basic", 2)+service("basic", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/basic", "deployment/basic")
	tenantWait(t, "deployment/basic", "--for=condition=Available")
	ips := externalIPs(t, "basic", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 2)
	}
	uid := tenantGet(t, "service/basic", "{.metadata.uid}")
	lb := func(path string) string { return hubGet(t, "tenant-a", "loadbalancer/"+uid, path) }
	require.Equal(t, "default", lb("{.metadata.labels.kubelb\\.k8c\\.io/origin-ns}"))
	require.Equal(t, "basic", lb("{.metadata.labels.kubelb\\.k8c\\.io/origin-name}"))
	require.Contains(t, lb("{.metadata.finalizers}"), "kubelb.k8c.io/cleanup")
	require.Equal(t, "default", lb("{.spec.endpoints[0].addressesReference.name}"))
	require.Equal(t, strings.Join(ips, " "), lb("{.status.loadBalancer.ingress[*].ip}"))
	require.Equal(t, "True", lb(`{.status.conditions[?(@.type=="Ready")].status}`))
	waitForEvent(t, "basic", "EnsuredLoadBalancer")
}

func TestDeletedServiceLeavesBothSidesClean(t *testing.T) {
	apply(t, service("gone", "ports: [{port: 80}]"))
	ips := externalIPs(t, "gone", 2)
	uid := tenantGet(t, "service/gone", "{.metadata.uid}")
	for _, ip := range ips {
		require.Contains(t, dataplaneAddresses(t), ip+" ")
	}
	kubectl(t, "delete", "service", "gone", "--timeout=30s")
	eventually(t, 10*time.Second, func() error {
		if out, err := lab.Hub.Get(t.Context(), "tenant-a", "loadbalancer/"+uid, "{.metadata.name}"); err == nil {
			return fmt.Errorf("still on the hub: %s", out)
		}
		for _, ip := range ips {
			if strings.Contains(dataplaneAddresses(t), ip+" ") {
				return fmt.Errorf("%s is still in the dataplane", ip)
			}
		}
		return nil
	})
	// There is no other Service, so the dataplane has no records. eBPF removes endpoints every ten seconds, once they have no flows.
	eventually(t, 20*time.Second, func() error {
		if held := dataplaneRecords(t); len(held) > 0 {
			return fmt.Errorf("the dataplane has %v", held)
		}
		return nil
	})
	// The addresses are free: another Service can request them.
	apply(t, strings.Replace(service("heir", "ports: [{port: 80}]"), "{name: heir}", "{name: heir, annotations: {kubelb.k8c.io/requested-addresses: '"+strings.Join(ips, ",")+"'}}", 1))
	cleanUp(t, "service/heir")
	require.Equal(t, ips, externalIPs(t, "heir", 2))
}

func TestThreePortsShareOneAddress(t *testing.T) {
	apply(t, web("three", 1)+service("three", "ports:",
		"- {name: a, port: 80, targetPort: 8080}", "- {name: b, port: 8080, targetPort: 8080}", "- {name: c, port: 65535, targetPort: 8080}"))
	cleanUp(t, "service/three", "deployment/three")
	tenantWait(t, "deployment/three", "--for=condition=Available")
	for _, ip := range externalIPs(t, "three", 2) {
		for _, port := range []int{80, 8080, 65535} {
			reachesPods(t, ip, port, 1)
		}
		_, err := curl(t, ip, 81, "/")
		require.True(t, refusedAtOnce(err), "a port that the Service does not have: %v", err)
	}
}

func TestTCPAndUDPOnOnePort(t *testing.T) {
	apply(t, web("dns", 2)+service("dns", "ports:",
		"- {name: tcp, port: 53, protocol: TCP, targetPort: 8080}", "- {name: udp, port: 53, protocol: UDP, targetPort: 8053}"))
	cleanUp(t, "service/dns", "deployment/dns")
	tenantWait(t, "deployment/dns", "--for=condition=Available")
	for _, ip := range externalIPs(t, "dns", 2) {
		reachesPods(t, ip, 53, 2)
		answered := map[string]int{}
		eventually(t, 10*time.Second, func() error {
			name, err := askUDP(t, ip, 53, 0)
			if err != nil {
				return err
			}
			if answered[name]++; len(answered) != 2 {
				return fmt.Errorf("UDP at %s is answered by %v", ip, answered)
			}
			return nil
		})
	}
}

func TestOnlyServicesOfTheClassAreServed(t *testing.T) {
	independentOfDataplane(t)
	manifest := service("ours", "loadBalancerClass: kubelb", "ports: [{port: 80}]") + service("foreign", "loadBalancerClass: example.com/other", "ports: [{port: 80}]")
	apply(t, manifest+service("none", "ports: [{port: 80}]"))
	cleanUp(t, "service/ours", "service/foreign", "service/none")
	externalIPs(t, "ours", 2)
	externalIPs(t, "none", 2)
	untouched := func(name string) {
		t.Helper()
		require.Equal(t, "||", tenantGet(t, "service/"+name, "{.metadata.finalizers}|{.status.loadBalancer.ingress}|{.status.conditions}"))
		require.Empty(t, events(t, name))
	}
	untouched("foreign")

	lab.CCM.Stop()
	require.NoError(t, lab.StartCCM(t.Context(), "--use-loadbalancer-class"))
	t.Cleanup(func() {
		lab.CCM.Stop()
		require.NoError(t, lab.StartCCM(cleanUpContext(t)))
	})
	apply(t, service("classless", "ports: [{port: 80}]")+service("classed", "loadBalancerClass: kubelb", "ports: [{port: 80}]"))
	cleanUp(t, "service/classless", "service/classed")
	externalIPs(t, "classed", 2)
	untouched("classless")
	untouched("foreign")
}

func TestLocalPolicyUsesOnlyNodesWithAReadyPod(t *testing.T) {
	onNode := func(node string) string {
		return strings.Replace(web("local", 1), "terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 0\n      nodeName: "+node, 1)
	}
	apply(t, onNode("node1")+service("local", "externalTrafficPolicy: Local", "ports:",
		"- {name: tcp, port: 80, targetPort: 8080}", "- {name: udp, port: 80, protocol: UDP, targetPort: 8053}"))
	cleanUp(t, "service/local", "deployment/local")
	tenantWait(t, "deployment/local", "--for=condition=Available")
	ips := externalIPs(t, "local", 2)
	uid := tenantGet(t, "service/local", "{.metadata.uid}")
	waitForCondition(t, "local", "True ClientAddressNotKept")
	for _, node := range []string{"1", "2", "1"} {
		apply(t, onNode("node"+node))
		eventually(t, 20*time.Second, func() error {
			got := hubGet(t, "tenant-a", "loadbalancer/"+uid, "{.spec.endpoints[0].localAddresses[*].ip}")
			if want := "198.51.100.1" + node + " 2001:db8:1::1" + node; got != want {
				return fmt.Errorf("local addresses %q, want %q", got, want)
			}
			// Before that, the former node may still answer.
			if err := gatewayHasApplied(t, "tenant-a", "loadbalancer/"+uid); err != nil {
				return err
			}
			for _, ip := range ips {
				if _, err := curl(t, ip, 80, "/hostname"); err != nil {
					return err
				}
				if _, err := askUDP(t, ip, 80, 0); err != nil {
					return err
				}
			}
			return nil
		})
		// No flow may go to the node without a pod: kube-proxy would drop it.
		for _, ip := range ips {
			answersByPod(t, ip, 80, 50)
		}
	}
	kubectl(t, "scale", "deployment/local", "--replicas=0")
	waitUntilPort80Refuses(t, ips)
}

func TestDirectForwardingKeepsTheClientsAddressThroughKubeProxy(t *testing.T) {
	onlyWith(t, "nftables", "ebpf")
	apply(t, web("direct", 2)+service("direct", "externalTrafficPolicy: Local", "ports:",
		"- {name: tcp, port: 80, targetPort: 8080}", "- {name: udp, port: 80, protocol: UDP, targetPort: 8053}"))
	cleanUp(t, "service/direct", "deployment/direct")
	tenantWait(t, "deployment/direct", "--for=condition=Available")
	ips := externalIPs(t, "direct", 2)
	waitForMode := func(want map[string]string, mode string) {
		eventually(t, 20*time.Second, func() error {
			if got := tenantGet(t, "service/direct", "{.status.loadBalancer.ingress[*].ipMode}"); got != mode+" "+mode {
				return fmt.Errorf("ipMode %q", got)
			}
			for _, ip := range ips {
				tcp, err := curl(t, ip, 80, "/clientip")
				if err != nil {
					return err
				}
				udp, err := sendUDP(t, ip, 80, 0, "clientip")
				if err != nil {
					return err
				}
				for _, answer := range []string{tcp, udp} {
					if client, err := netip.ParseAddrPort(answer); err != nil || client.Addr().String() != want[ip] {
						return fmt.Errorf("the pod sees %s as client, want %s", answer, want[ip])
					}
				}
			}
			return nil
		})
	}
	gateway, client := map[string]string{}, map[string]string{}
	for _, ip := range ips {
		gateway[ip], client[ip] = "198.51.100.1", cluster.Client4
		if strings.Contains(ip, ":") {
			gateway[ip], client[ip] = "2001:db8:1::1", cluster.Client6
		}
	}
	waitForMode(gateway, "Proxy")
	kubectl(t, "annotate", "service/direct", "kubelb.k8c.io/forwarding=direct")
	waitForMode(client, "VIP")
	require.Equal(t, ips, externalIPs(t, "direct", 2), "a change of mode keeps the addresses")
	waitForCondition(t, "direct", "True Ready")
	for _, ip := range ips {
		reachesPods(t, ip, 80, 2)
		answersByPod(t, ip, 80, 50)
	}
	kubectl(t, "annotate", "--overwrite", "service/direct", "kubelb.k8c.io/forwarding=nat")
	waitForMode(gateway, "Proxy")
}

func TestDirectForwardingNeedsNoNodePorts(t *testing.T) {
	onlyWith(t, "nftables", "ebpf")
	apply(t, web("bare", 2)+service("bare", "allocateLoadBalancerNodePorts: false", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/bare", "deployment/bare")
	waitForCondition(t, "bare", "False NoNodePort")
	kubectl(t, "annotate", "service/bare", "kubelb.k8c.io/forwarding=direct")
	waitForCondition(t, "bare", "True Ready")
	require.Empty(t, tenantGet(t, "service/bare", "{.spec.ports[*].nodePort}"))
	tenantWait(t, "deployment/bare", "--for=condition=Available")
	for _, ip := range externalIPs(t, "bare", 2) {
		reachesPods(t, ip, 80, 2)
	}
}

func TestClusterPolicyUsesAllNodes(t *testing.T) {
	apply(t, web("spread", 2)+service("spread", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/spread", "deployment/spread")
	tenantWait(t, "deployment/spread", "--for=condition=Available")
	for _, ip := range externalIPs(t, "spread", 2) {
		reachesPods(t, ip, 80, 2)
		answersByPod(t, ip, 80, 60)
		nodePort := tenantGet(t, "service/spread", "{.spec.ports[0].nodePort}")
		require.Len(t, nodesUsed(t, nodePort, ip), 2, "both nodes have flows from the gateway to %s", ip)
	}
}

func TestSourceRangesAdmitAndRefuse(t *testing.T) {
	spec := func(ranges string) string {
		return service("ranges", "loadBalancerSourceRanges: ["+ranges+"]", "ports: [{port: 80, targetPort: 8080}]")
	}
	apply(t, web("ranges", 1)+spec(`192.0.2.100/32, "2001:db8:c::100/128"`))
	cleanUp(t, "service/ranges", "deployment/ranges")
	tenantWait(t, "deployment/ranges", "--for=condition=Available")
	ips := externalIPs(t, "ranges", 2)
	waitForAdmission := func(want bool) {
		t.Helper()
		for _, ip := range ips {
			eventually(t, 10*time.Second, func() error {
				if _, err := curl(t, ip, 80, "/hostname"); (err == nil) != want {
					return fmt.Errorf("%s: admitted is %v, want %v (%v)", ip, err == nil, want, err)
				}
				return nil
			})
		}
	}
	waitForAdmission(true)
	apply(t, spec(`10.0.0.0/8, "2001:db8:ffff::/48"`))
	waitForAdmission(false)
	apply(t, spec(`192.0.2.0/24, "2001:db8:c::/64"`))
	waitForAdmission(true)
	kubectl(t, "patch", "service", "ranges", "--type=json", "-p", `[{"op":"remove","path":"/spec/loadBalancerSourceRanges"}]`)
	waitForAdmission(true)
}

func TestClientIPAffinityKeepsAClientOnOneNode(t *testing.T) {
	for _, policy := range []string{"Cluster", "Local"} {
		t.Run(policy, func(t *testing.T) {
			name := "sticky-" + strings.ToLower(policy)
			apply(t, web(name, 2)+service(name, "externalTrafficPolicy: "+policy, "sessionAffinity: ClientIP", "sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}", "ports: [{port: 80, targetPort: 8080}]"))
			cleanUp(t, "service/"+name, "deployment/"+name)
			tenantWait(t, "deployment/"+name, "--for=condition=Available")
			ips := externalIPs(t, name, 2)
			for _, ip := range ips {
				if policy == "Local" {
					waitUntilOnePodAnswers(t, ip)
				} else {
					reachesPods(t, ip, 80, 1)
				}
				require.Len(t, answersByPod(t, ip, 80, 30), 1)
			}
			kubectl(t, "patch", "service", name, "-p", `{"spec":{"sessionAffinity":"None","sessionAffinityConfig":null}}`)
			for _, ip := range ips {
				reachesPods(t, ip, 80, 2)
			}
		})
	}
}

// waitUntilOnePodAnswers waits until one pod has answered all requests during two rounds of health checks. kube-proxy forwards to a new pod before its health check
// succeeds. So a failed check may still remove the client's node from the pool after the first answers.
func waitUntilOnePodAnswers(t *testing.T, ip string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		first, err := curl(t, ip, 80, "/hostname")
		for end := time.Now().Add(2 * probe.DefaultConfig().Interval); err == nil && time.Now().Before(end); {
			var name string
			if name, err = curl(t, ip, 80, "/hostname"); err == nil && name != first {
				err = fmt.Errorf("%s is answered by %s and %s", ip, first, name)
			}
		}
		return err
	})
}

// The operator of the network routes addresses in spec.externalIPs to nodes. Any user who may write Services can set them (CVE-2020-8554).
func TestExternalIPsAreNotAnnounced(t *testing.T) {
	const named = "192.0.2.150"
	apply(t, web("named", 1)+service("named", "externalIPs: ["+named+"]", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/named", "deployment/named")
	for _, ip := range externalIPs(t, "named", 2) {
		require.NotEqual(t, named, ip)
		reachesPods(t, ip, 80, 1)
	}
	require.NotContains(t, hubGet(t, "tenant-a", "loadbalancer/"+tenantGet(t, "service/named", "{.metadata.uid}"), "{.metadata}{.spec}{.status}"), named)
	_, err := curl(t, named, 80, "/hostname")
	require.Error(t, err)
	neighbour, err := lab.FromClient(t.Context(), "ip", "neighbour", "show", named)
	require.NoError(t, err)
	require.NotContains(t, neighbour, "lladdr", "a host answers for it")
}

// port81IsServed returns an error unless port 81 is served at all addresses, or refused at once if served is false.
func port81IsServed(t *testing.T, ips []string, served bool) error {
	for _, ip := range ips {
		_, err := curl(t, ip, 81, "/hostname")
		if served && err != nil || !served && !refusedAtOnce(err) {
			return fmt.Errorf("%s port 81: %v, should be served: %v", ip, err, served)
		}
	}
	return nil
}

func port80IsServed(t *testing.T, ips []string) {
	t.Helper()
	for _, ip := range ips {
		_, err := curl(t, ip, 80, "/hostname")
		require.NoError(t, err, "port 80 is served")
	}
}

// waitUntilPort80Refuses waits until connections are refused at once, since there is no endpoint.
func waitUntilPort80Refuses(t *testing.T, ips []string) {
	t.Helper()
	for _, ip := range ips {
		eventually(t, 10*time.Second, func() error {
			if _, err := curl(t, ip, 80, "/hostname"); !refusedAtOnce(err) {
				return fmt.Errorf("%s port 80 should be refused at once, got %v", ip, err)
			}
			return nil
		})
	}
}

func TestPortsAreAddedRemovedAndRenamed(t *testing.T) {
	apply(t, web("ports", 1)+service("ports", "ports: [{name: http, port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/ports", "deployment/ports")
	tenantWait(t, "deployment/ports", "--for=condition=Available")
	ips := externalIPs(t, "ports", 2)
	uid := tenantGet(t, "service/ports", "{.metadata.uid}")
	change := func(patch, names string, port81 bool) {
		t.Helper()
		kubectl(t, "patch", "service", "ports", "--type=json", "-p", patch)
		eventually(t, 10*time.Second, func() error {
			if got := hubGet(t, "tenant-a", "loadbalancer/"+uid, "{.spec.ports[*].name}"); got != names {
				return fmt.Errorf("the hub has the ports %q, want %q", got, names)
			}
			return port81IsServed(t, ips, port81)
		})
		port80IsServed(t, ips)
	}
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	change(`[{"op":"add","path":"/spec/ports/-","value":{"name":"alt","port":81,"targetPort":8080}}]`, "http alt", true)
	// kube-proxy finds endpoints by the port's name. For a second or two a renamed port has none, until kube-proxy has EndpointSlices with the new name.
	change(`[{"op":"replace","path":"/spec/ports/1/name","value":"other"}]`, "http other", true)
	change(`[{"op":"remove","path":"/spec/ports/1"}]`, "http", false)
}

func TestAServiceWithAnInvalidSettingIsStillServed(t *testing.T) {
	apply(t, web("slip", 1)+service("slip", "ports: [{name: a, port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/slip", "deployment/slip")
	tenantWait(t, "deployment/slip", "--for=condition=Available")
	ips := externalIPs(t, "slip", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	kubectl(t, "annotate", "service/slip", "kubelb.k8c.io/forwarding=diretc")
	waitForCondition(t, "slip", `served, but: metadata.annotations.kubelb.k8c.io/forwarding is "diretc": use one of nat, transparent, direct; until then the last valid value stays in effect`)
	waitForEvent(t, "slip", "SyncLoadBalancerFailed")
	port80IsServed(t, ips)
	require.Equal(t, ips, externalIPs(t, "slip", 2))

	// Other changes of the Service are applied.
	kubectl(t, "patch", "service", "slip", "--type=json", "-p", `[{"op":"add","path":"/spec/ports/-","value":{"name":"b","port":81,"targetPort":8080}}]`)
	eventually(t, 10*time.Second, func() error { return port81IsServed(t, ips, true) })
	kubectl(t, "annotate", "service/slip", "kubelb.k8c.io/forwarding-")
	eventually(t, 10*time.Second, func() error {
		if got := readyCondition(t, "slip"); strings.Contains(got, "but") || !strings.HasPrefix(got, "True") {
			return fmt.Errorf("condition %q", got)
		}
		return nil
	})
	require.Equal(t, ips, externalIPs(t, "slip", 2))

	// A Service without a port to serve does not show an address, which another one may get.
	kubectl(t, "patch", "service", "slip", "--type=json", "-p", `[{"op":"replace","path":"/spec/ports","value":[{"port":80,"protocol":"SCTP"}]}]`)
	waitForCondition(t, "slip", "UnsupportedProtocol")
	require.Empty(t, tenantGet(t, "service/slip", "{.status.loadBalancer.ingress}"))
}

func TestTypeChangesToClusterIPAndBack(t *testing.T) {
	apply(t, web("type", 1)+service("type", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/type", "deployment/type")
	tenantWait(t, "deployment/type", "--for=condition=Available")
	ips := externalIPs(t, "type", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	uid := tenantGet(t, "service/type", "{.metadata.uid}")
	kubectl(t, "patch", "service", "type", "-p", `{"spec":{"type":"ClusterIP"}}`)
	externalIPs(t, "type", 0)
	eventually(t, 10*time.Second, func() error {
		if got := tenantGet(t, "service/type", "{.metadata.finalizers}{.status.conditions}"); got != "" {
			return fmt.Errorf("left on the Service: %s", got)
		}
		if _, err := lab.Hub.Get(t.Context(), "tenant-a", "loadbalancer/"+uid, "{.metadata.name}"); err == nil {
			return fmt.Errorf("still on the hub")
		}
		return nil
	})
	for _, ip := range ips {
		_, err := curl(t, ip, 80, "/")
		require.Error(t, err)
	}
	kubectl(t, "patch", "service", "type", "-p", `{"spec":{"type":"LoadBalancer"}}`)
	for _, ip := range externalIPs(t, "type", 2) {
		reachesPods(t, ip, 80, 1)
	}
}

func TestAWaitingLoadBalancerGetsAFreedAddress(t *testing.T) {
	independentOfDataplane(t)
	applyToHub(t, `
apiVersion: kubelb.k8c.io/v1alpha1
kind: AddressPool
metadata: {name: small}
spec: {addresses: [192.0.2.150-192.0.2.151], tenants: [small]}
---
apiVersion: kubelb.k8c.io/v1alpha1
kind: Tenant
metadata: {name: small}
spec: {backendCIDRs: [198.51.100.0/24], backendNetwork: small}
`)
	cleanUpHub(t, "tenant/small", "addresspool/small", "addresspool/public-but-small")
	hubKubectl(t, "patch", "addresspool", "public", "--type=merge", "-p", `{"spec":{"tenants":["a","b"]}}`)
	t.Cleanup(func() {
		_, err := lab.Hub.Kubectl(cleanUpContext(t), "", "patch", "addresspool", "public", "--type=merge", "-p", `{"spec":{"tenants":[]}}`)
		require.NoError(t, err)
	})
	eventually(t, 10*time.Second, func() error {
		_, err := lab.Hub.Get(t.Context(), "", "namespace/tenant-small", "")
		return err
	})
	applyToHub(t, hubAddresses("tenant-small")+hubLoadBalancer("tenant-small", "one", "")+hubLoadBalancer("tenant-small", "two", ""))
	first, second := hubIP(t, "tenant-small", "one"), hubIP(t, "tenant-small", "two")
	require.ElementsMatch(t, []string{"192.0.2.150", "192.0.2.151"}, []string{first, second})
	applyToHub(t, hubLoadBalancer("tenant-small", "three", ""))
	message := hubRefusal(t, "tenant-small", "three", "AddressAllocated", "PoolExhausted")
	require.Contains(t, message, "no free IPv4 address in small")
	eventually(t, 5*time.Second, func() error {
		if free := hubGet(t, "default", "addresspool/small", "{.status.ipv4.free}"); free != "0" {
			return fmt.Errorf("the pool counts %s free addresses", free)
		}
		return nil
	})
	hubKubectl(t, "-n", "tenant-small", "delete", "loadbalancer", "one", "--timeout=30s")
	require.Equal(t, first, hubIP(t, "tenant-small", "three"))
}

func TestAServiceSelectsAPoolAndThePoolSelectsGateways(t *testing.T) {
	independentOfDataplane(t)
	pool := func(spec string) {
		applyToHub(t, `
apiVersion: kubelb.k8c.io/v1alpha1
kind: AddressPool
metadata: {name: reserved}
spec: {addresses: [192.0.2.160-192.0.2.161, "2001:db8:c::160-2001:db8:c::161"], autoAssign: false`+spec+`}
`)
	}
	pool("")
	cleanUpHub(t, "addresspool/reserved")
	apply(t, web("named", 1)+service("named", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/named", "deployment/named")
	tenantWait(t, "deployment/named", "--for=condition=Available")
	require.NotContains(t, externalIPs(t, "named", 2), "192.0.2.160")
	waitForAddresses := func(prefixes ...string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			ips := strings.Fields(tenantGet(t, "service/named", "{.status.loadBalancer.ingress[*].ip}"))
			for i, prefix := range prefixes {
				if len(ips) != len(prefixes) || !strings.HasPrefix(ips[i], prefix) {
					return fmt.Errorf("the Service has %v", ips)
				}
				if _, err := curl(t, ips[i], 80, "/hostname"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	kubectl(t, "annotate", "service/named", "kubelb.k8c.io/address-pool=reserved")
	waitForAddresses("192.0.2.16", "2001:db8:c::16")
	// A draining pool keeps its allocations and makes no new ones.
	pool(", draining: true")
	waitForAddresses("192.0.2.16", "2001:db8:c::16")
	apply(t, service("late", "ports: [{port: 80}]"))
	cleanUp(t, "service/late")
	externalIPs(t, "late", 2)
	kubectl(t, "annotate", "service/late", "kubelb.k8c.io/address-pool=reserved")
	waitForCondition(t, "late", "False NoMatchingPool")
	// Gateways that a pool does not select announce none of its addresses.
	pool(", draining: true, gatewaySelector: {matchLabels: {rack: one}}")
	announced := func() string {
		return hubGet(t, "", "gateways.kubelb.k8c.io/gateway", "{.status.announcedAddresses} of {.status.frontends}")
	}
	eventually(t, 20*time.Second, func() error {
		if got := announced(); got != "2 of 4" {
			return fmt.Errorf("the gateway announces %s", got)
		}
		return nil
	})
	hubKubectl(t, "label", "gateways.kubelb.k8c.io", "gateway", "rack=one")
	t.Cleanup(func() {
		_, err := lab.Hub.Kubectl(cleanUpContext(t), "", "label", "gateways.kubelb.k8c.io", "gateway", "rack-")
		require.NoError(t, err)
	})
	eventually(t, 20*time.Second, func() error {
		if got := announced(); got != "4 of 4" {
			return fmt.Errorf("the gateway announces %s", got)
		}
		return nil
	})
	waitForAddresses("192.0.2.16", "2001:db8:c::16")
	onlyGatewayCrashes(t, "named", func(selector string) { pool(", draining: true, gatewaySelector: {matchLabels: {" + selector + "}}") })
}

// onlyGatewayCrashes kills the only gateway that the Service's AddressPool selects. Its last status must not count until it runs again.
func onlyGatewayCrashes(t *testing.T, name string, selectGateways func(selector string)) {
	t.Helper()
	host, err := lab.AddGateway("lonely", 7)
	require.NoError(t, err)
	cleanUpHub(t, "gateways.kubelb.k8c.io/lonely", "kubelb|lease/lonely")
	lonely, err := lab.StartGateway(host, "lonely", "--gateway-label=rack=two")
	require.NoError(t, err)
	waitForStatus := func(path, want string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if got, _ := lab.Hub.Get(t.Context(), "", "gateways.kubelb.k8c.io/lonely", path); !regexp.MustCompile(want).MatchString(got) {
				return fmt.Errorf("gateway lonely has %s %q, want %s", path, got, want)
			}
			return nil
		})
	}
	waitForStatus("{.status.candidates[*]}", "^gateway lonely$")
	selectGateways("rack: two")
	waitForStatus("{.status.announcedAddresses}", "^[2-9]$")
	waitForCondition(t, name, "True Ready")
	address := externalIPs(t, name, 2)[0]
	lonely.Kill()
	waitForCondition(t, name, "Unknown GatewaySilent")
	require.Len(t, externalIPs(t, name, 2), 2, "it may still be served")
	waitForStatus(`{.status.conditions[?(@.type=="Ready")]['status','reason']}`, "^Unknown NotHeard$")
	page, status := kubelb(t, "status")
	require.Equal(t, 1, status, page)
	require.Regexp(t, `(?m)^lonely +Gone +\S+ +- +- +-$`, page)
	require.Contains(t, page, "GatewaySilent: "+address+" is not announced: gateway lonely: the gateway has not renewed its Lease since ")
	explained, status := kubelb(t, "explain", "default/"+name)
	require.Equal(t, 1, status, explained)
	require.Regexp(t, `(?m)^  NO +gateways work +lonely is gone$`, explained, "the pool does not select the other gateways")
	path, status := kubelb(t, "trace", net.JoinHostPort(address, "80"))
	require.Equal(t, 1, status, path)
	require.Contains(t, path, "no gateway answers for the address")
	t.Log(page, explained, path)
	lonely, err = lab.StartGateway(host, "lonely", "--gateway-label=rack=two", "--announce=none")
	require.NoError(t, err)
	t.Cleanup(lonely.Stop)
	waitForCondition(t, name, "True Ready")
}

func TestTwoTenantsNeverShareAnAddress(t *testing.T) {
	independentOfDataplane(t)
	applyToHub(t, `
apiVersion: kubelb.k8c.io/v1alpha1
kind: Tenant
metadata: {name: b}
spec: {backendCIDRs: [198.51.100.0/24], backendNetwork: b}
`)
	cleanUpHub(t, "tenant/b")
	kubeconfig := lab.Dir + "/b.kubeconfig"
	require.NoError(t, lab.TenantKubeconfig(t.Context(), "b", kubeconfig))
	apply(t, service("one", "ports: [{port: 80}]")+service("two", "ports: [{port: 80}]"))
	cleanUp(t, "service/one", "service/two")
	one, two := externalIPs(t, "one", 2)[0], externalIPs(t, "two", 2)[0]
	// With its credentials a tenant may write only its own namespace.
	_, err := lab.Hub.KubectlAs(t.Context(), kubeconfig, hubAddresses("tenant-b")+hubLoadBalancer("tenant-b", "theirs", ""), "create", "-f", "-")
	require.NoError(t, err)
	theirs := hubIP(t, "tenant-b", "theirs")
	require.Len(t, map[string]bool{one: true, two: true, theirs: true}, 3)
	for _, attempt := range [][]string{
		{"-n", "tenant-a", "get", "loadbalancers"}, {"get", "tenants"}, {"get", "addresspools"}, {"-n", "tenant-b", "get", "secrets"},
		{"-n", "tenant-b", "patch", "loadbalancer", "theirs", "--subresource=status", "--type=merge", "-p", `{"status":{"addresses":[]}}`},
	} {
		_, err := lab.Hub.KubectlAs(t.Context(), kubeconfig, "", attempt...)
		require.ErrorContains(t, err, "forbidden", "%v", attempt)
	}
	// A tenant cannot request another tenant's address.
	_, err = lab.Hub.KubectlAs(t.Context(), kubeconfig, hubLoadBalancer("tenant-b", "thief", "requestedAddresses: ["+one+"]"), "create", "-f", "-")
	require.NoError(t, err)
	message := hubRefusal(t, "tenant-b", "thief", "AddressAllocated", "AddressInUse")
	require.NotContains(t, message, "tenant-a", "a message to a tenant names no other tenant")
}

func TestAServiceWithoutEligibleNodesIsReported(t *testing.T) {
	independentOfDataplane(t)
	apply(t, service("nodeless", "ports: [{port: 80}]"))
	cleanUp(t, "service/nodeless")
	ips := externalIPs(t, "nodeless", 2)
	kubectl(t, "label", "nodes", "--all", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	t.Cleanup(func() {
		_, err := lab.Tenant.Kubectl(cleanUpContext(t), "", "label", "nodes", "--all", "node.kubernetes.io/exclude-from-external-load-balancers-")
		require.NoError(t, err)
		eventually(t, 10*time.Second, func() error {
			if !strings.Contains(dataplaneEndpoints(t), lab.Nodes[0].Address4) {
				return fmt.Errorf("the nodes are not back in the dataplane")
			}
			return nil
		})
	})
	waitForEvent(t, "nodeless", "UnAvailableLoadBalancer")
	waitUntilPort80Refuses(t, ips)
	require.Equal(t, ips, externalIPs(t, "nodeless", 2), "the addresses stay")
}

func TestAFailedNodeGetsNoFlowsAfterFiveSeconds(t *testing.T) {
	apply(t, web("death", 2)+service("death", "ports:", "- {name: tcp, port: 80, targetPort: 8080}", "- {name: udp, port: 80, protocol: UDP, targetPort: 8053}"))
	cleanUp(t, "service/death", "deployment/death")
	tenantWait(t, "deployment/death", "--for=condition=Available")
	ips := externalIPs(t, "death", 2)
	failed := lab.Nodes[1]
	ofNode := map[string]string{ips[0]: failed.Address4, ips[1]: failed.Address6}
	flows := map[string]int{}
	for _, ip := range ips {
		reachesPods(t, ip, 80, 2)
		// Only nftables has the node of a flow in the gateway's connection tracking.
		if backendName() == "nftables" {
			flows[ip] = udpFlowTo(t, ip, ofNode[ip])
		}
	}
	t.Cleanup(func() {
		require.NoError(t, failed.Reconnect())
		eventually(t, 30*time.Second, func() error {
			used := dataplaneEndpoints(t)
			for _, address := range ofNode {
				if !strings.Contains(used, address) {
					return fmt.Errorf("%s is not back in the dataplane", address)
				}
			}
			return nil
		})
	})
	require.NoError(t, failed.Disconnect())
	start := time.Now()
	eventually(t, 5*time.Second, func() error {
		used := dataplaneEndpoints(t)
		for ip, address := range ofNode {
			if strings.Contains(used, address) {
				return fmt.Errorf("%s is still in the dataplane", address)
			}
			// Otherwise a client that keeps sending would keep its flow to the failed node for ever.
			if node := nodesOf(t, "udp", ip)[fmt.Sprint(flows[ip])]; flows[ip] != 0 && node == address {
				return fmt.Errorf("the UDP flow to %s is still at %s", ip, node)
			}
		}
		return nil
	})
	t.Logf("out of the dataplane, UDP flows included, after %.1f s", time.Since(start).Seconds())
}

// udpFlowTo finds a client port whose UDP flow goes to the node.
func udpFlowTo(t *testing.T, ip, node string) int {
	t.Helper()
	for port := 20000; port < 20200; port++ {
		_, err := askUDP(t, ip, 80, port)
		require.NoError(t, err)
		if nodesOf(t, "udp", ip)[fmt.Sprint(port)] == node {
			return port
		}
	}
	t.Fatalf("no UDP flow to %s went to %s", ip, node)
	return 0
}

func TestServicesOfOneTenantShareAnAddressByAKey(t *testing.T) {
	sharing := func(name, pods string, port int, more string) string {
		return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, annotations: {kubelb.k8c.io/sharing-key: shop%s}}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: %s}, ports: [{port: %d, targetPort: 8080}]}
`, name, more, pods, port)
	}
	apply(t, web("left", 1)+"\n---\n"+web("right", 1)+sharing("left", "left", 80, ""))
	cleanUp(t, "service/left", "service/right", "service/clash", "deployment/left", "deployment/right")
	tenantWait(t, "deployment/left", "--for=condition=Available")
	tenantWait(t, "deployment/right", "--for=condition=Available")
	shared := externalIPs(t, "left", 2)
	apply(t, sharing("right", "right", 81, ""))
	require.Equal(t, shared, externalIPs(t, "right", 2))
	answersAs := func(port int, pods string) {
		t.Helper()
		for _, ip := range shared {
			reachesPods(t, ip, port, 1)
			for host := range answersByPod(t, ip, port, 5) {
				require.Contains(t, host, pods)
			}
		}
	}
	answersAs(80, "left")
	answersAs(81, "right")
	apply(t, sharing("clash", "left", 80, `, kubelb.k8c.io/requested-addresses: "`+strings.Join(shared, ",")+`"`))
	waitForCondition(t, "clash", "False AddressInUse")
	answersAs(80, "left")
	// The remaining Service keeps the address, and the waiting one gets the port.
	kubectl(t, "delete", "service", "left", "--timeout=30s")
	answersAs(81, "right")
	require.Equal(t, shared, externalIPs(t, "clash", 2))
	answersAs(80, "left")
}
