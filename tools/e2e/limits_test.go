package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/cluster"
)

func TestATenantOverItsLimitWaitsAndKeepsItsAddresses(t *testing.T) {
	independentOfDataplane(t)
	const ns = "tenant-limited"
	limits := func(text string) {
		applyToHub(t, fmt.Sprintf("apiVersion: kubelb.k8c.io/v1alpha1\nkind: Tenant\nmetadata: {name: limited}\nspec: {backendCIDRs: [198.51.100.0/24], backendNetwork: limited, limits: %s}", text))
	}
	limits("{loadBalancers: 1}")
	cleanUpHub(t, "tenant/limited")
	hubKubectl(t, "wait", "tenant/limited", "--for=condition=Ready", "--timeout=30s")
	used := func(want string) {
		eventually(t, 10*time.Second, func() error {
			if got := hubGet(t, "default", "tenant/limited", "{.status.used.loadBalancers} {.status.used.addresses}"); got != want {
				return fmt.Errorf("status.used is %q, want %q", got, want)
			}
			return nil
		})
	}
	used("0 0")

	applyToHub(t, hubAddresses(ns)+hubLoadBalancer(ns, "first", ""))
	first := hubIP(t, ns, "first")
	applyToHub(t, hubLoadBalancer(ns, "second", ""))
	message := hubRefusal(t, ns, "second", "AddressAllocated", "LimitReached")
	require.Equal(t, "Tenant limited, spec.limits.loadBalancers is 1, and 1 LoadBalancers have addresses: delete one that is not needed, or have the management cluster's operator raise it", message)
	used("1 1")

	// When a limit is lowered, existing LoadBalancers keep their addresses, also if they change.
	limits("{loadBalancers: 0, addresses: 0}")
	hubKubectl(t, "-n", ns, "patch", "loadbalancer", "first", "--type=merge", "-p", `{"spec":{"loadBalancerSourceRanges":["192.0.2.0/24"]}}`)
	eventually(t, 10*time.Second, func() error { return gatewayHasApplied(t, ns, "loadbalancer/first") })
	require.Equal(t, first, hubIP(t, ns, "first"))

	// A waiting LoadBalancer gets addresses when the limit is raised or another one is deleted.
	limits("{loadBalancers: 2}")
	second := hubIP(t, ns, "second")
	require.NotEqual(t, first, second)
	used("2 2")
	limits("{addresses: 2}")
	applyToHub(t, hubLoadBalancer(ns, "third", ""))
	require.Contains(t, hubRefusal(t, ns, "third", "AddressAllocated", "LimitReached"), "spec.limits.addresses is 2, and it would have 3 addresses")
	hubKubectl(t, "-n", ns, "delete", "loadbalancer", "first", "--timeout=30s")
	require.NotEmpty(t, hubIP(t, ns, "third"))

	_, err := lab.Hub.Kubectl(t.Context(), "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Tenant\nmetadata: {name: wrong}\nspec: {limits: {addresses: -1}}", "apply", "-f", "-")
	require.ErrorContains(t, err, "should be greater than or equal to 0")
}

// limitSetter returns a function that sets the limits of the lab's tenant, as JSON. null removes them, and so does the end of the test.
func limitSetter(t *testing.T) (setLimits func(limits string)) {
	setLimits = func(limits string) {
		_, err := lab.Hub.Kubectl(cleanUpContext(t), "", "patch", "tenant", "a", "--type=merge", "-p", `{"spec":{"limits":`+limits+`}}`)
		require.NoError(t, err)
	}
	t.Cleanup(func() { setLimits("null") })
	return setLimits
}

func TestTheLimitOfConnectionsPerPort(t *testing.T) {
	setLimits := limitSetter(t)
	apply(t, web("bounded", 1)+service("bounded", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/bounded", "deployment/bounded")
	tenantWait(t, "deployment/bounded", "--for=condition=Available")
	ips := externalIPs(t, "bounded", 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	setLimits(`{"connectionsPerPort":3}`)
	for _, ip := range ips {
		var open []net.Conn
		closeAll := func() {
			for _, c := range open {
				c.Close()
			}
			open = nil
		}
		t.Cleanup(closeAll)
		eventually(t, 30*time.Second, func() error {
			for len(open) < 3 {
				c, err := connect(t, ip)
				if err != nil {
					return err
				}
				open = append(open, c)
			}
			// The limit may not be in force yet, and may not count older connections.
			if _, err := lab.FromClient(t.Context(), "curl", "-sS", "-g", "--max-time", "1", "http://"+net.JoinHostPort(ip, "80")+"/hostname"); err == nil {
				closeAll()
				return errors.New("a fourth connection is served")
			}
			return nil
		})
		waitForUsed(t, countersDelay, "connectionsPerPort", 3)
		for _, c := range open {
			require.NoError(t, requestOn(t, c, 10*time.Second), "an older connection")
		}
		open[0].Close()
		eventually(t, 30*time.Second, func() error {
			_, err := curl(t, ip, 80, "/hostname")
			return err
		})
		closeAll()
	}
	if backendName() == "envoy" {
		setLimits(`{"newConnectionsPerSecondPerPort":10}`)
		uid := tenantGet(t, "service/bounded", "{.metadata.uid}")
		require.Contains(t, hubRefusal(t, "tenant-a", uid, "Programmed", "DataplaneRefused"), "the envoy backend does not support rate-limits")
	}
}

func TestTheLimitsOfPortsAndEndpoints(t *testing.T) {
	independentOfDataplane(t)
	setLimits := limitSetter(t)
	apply(t, web("ported", 1)+service("ported", "ports: [{name: a, port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/ported", "deployment/ported")
	tenantWait(t, "deployment/ported", "--for=condition=Available")
	ips := externalIPs(t, "ported", 2)
	uid := tenantGet(t, "service/ported", "{.metadata.uid}")
	used := func(want int) {
		t.Helper()
		waitForUsed(t, 10*time.Second, "ports", want)
	}
	served := func(port81 bool) {
		t.Helper()
		eventually(t, 10*time.Second, func() error { return port81IsServed(t, ips, port81) })
		port80IsServed(t, ips)
	}
	used(1)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}

	// The LoadBalancer keeps the ports that it had, and its condition reports the limit.
	setLimits(`{"ports":1}`)
	kubectl(t, "patch", "service", "ported", "--type=json", "-p", `[{"op":"add","path":"/spec/ports/-","value":{"name":"b","port":81,"targetPort":8080}}]`)
	require.Contains(t, hubRefusal(t, "tenant-a", uid, "AddressAllocated", "LimitReached"), "Tenant a, spec.limits.ports is 1, and it would have 2 ports")
	served(false)
	require.Equal(t, "80", hubGet(t, "tenant-a", "loadbalancer/"+uid, "{.status.admittedPorts[*].port}"))
	used(1)

	// The same ports are served after a restart of the manager. A higher limit admits the others.
	lab.Manager.Kill()
	require.NoError(t, lab.StartManager())
	served(false)
	setLimits(`{"ports":2}`)
	served(true)
	require.Empty(t, hubGet(t, "tenant-a", "loadbalancer/"+uid, "{.status.admittedPorts}"))
	used(2)
	setLimits(`{"ports":0}`)
	served(true)

	// A waiting LoadBalancer gets its port when another one releases a port.
	apply(t, service("late", "ports: [{port: 82, targetPort: 8080}]"))
	cleanUp(t, "service/late")
	setLimits(`{"ports":2}`)
	late := tenantGet(t, "service/late", "{.metadata.uid}")
	require.Contains(t, hubRefusal(t, "tenant-a", late, "AddressAllocated", "LimitReached"), "it would have 3 ports")
	kubectl(t, "patch", "service", "ported", "--type=json", "-p", `[{"op":"remove","path":"/spec/ports/1"}]`)
	externalIPs(t, "late", 2)

	setLimits(`{"endpointsPerLoadBalancer":1}`)
	eventually(t, 10*time.Second, func() error {
		accepted := hubGet(t, "tenant-a", "loadbalancer/"+uid, `{.status.conditions[?(@.type=="Accepted")].message}`)
		if !strings.Contains(accepted, "2 more than the 1 of each family that Tenant a may have (spec.limits.endpointsPerLoadBalancer) are left out") {
			return fmt.Errorf("accepted: %s", accepted)
		}
		return nil
	})
	served(false)
	waitForUsed(t, 10*time.Second, "endpointsPerLoadBalancer", 1)
}

// countersDelay is the time until counters of gateways are known on the hub. Gateways read them every fifteen seconds.
const countersDelay = 40 * time.Second

// waitForUsed waits until status.used of the lab's tenant has this value.
func waitForUsed(t *testing.T, within time.Duration, resource string, want int) {
	t.Helper()
	eventually(t, within, func() error {
		if got := hubGet(t, "default", "tenant/a", "{.status.used."+resource+"}"); got != fmt.Sprint(want) {
			return fmt.Errorf("status.used.%s is %q, want %d", resource, got, want)
		}
		return nil
	})
}

// connect opens a connection and gets a response on it within a second. An http.Client would continue to open a connection after its request has timed out, and
// keep it.
func connect(t *testing.T, ip string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := lab.Client.DialContext(ctx, "tcp", net.JoinHostPort(ip, "80"))
	if err != nil {
		return nil, err
	}
	if err := requestOn(t, c, time.Second); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// requestOn sends a request on a connection and waits for the response. On a busy host this may take long.
func requestOn(t *testing.T, c net.Conn, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	_, err := cluster.AskHostname(ctx, c)
	return err
}
