package e2e

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// waitForAnnounced waits until the status of a gateway has these numbers of announced addresses and frontends.
func waitForAnnounced(t *testing.T, gateway, want string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if got, err := lab.Hub.Get(t.Context(), "", "gateways.kubelb.k8c.io/"+gateway, "{.status.announcedAddresses} of {.status.frontends}"); got != want {
			return fmt.Errorf("%s announces %q (%v)", gateway, got, err)
		}
		return nil
	})
}

// createService creates a Service with one pod, waits until the pod answers at all addresses, and returns these.
func createService(t *testing.T, name string) []string {
	t.Helper()
	apply(t, web(name, 1)+service(name, "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/"+name, "deployment/"+name)
	tenantWait(t, "deployment/"+name, "--for=condition=Available")
	ips := externalIPs(t, name, 2)
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	return ips
}

// With --purge-on-exit Envoy ends with its manager, as in a pod.
func TestAGatewayWithEnvoyEndsAfterItsConnections(t *testing.T) {
	onlyWith(t, "envoy")
	ips := createService(t, "leave")
	host, err := lab.AddGateway("leaver", 9)
	require.NoError(t, err)
	cleanUpHub(t, "gateways.kubelb.k8c.io/leaver", "kubelb|lease/leaver")
	leaver, err := lab.StartGateway(host, "leaver", "--drain-timeout=1m", "--purge-on-exit", "--backend-option=close-time=0s")
	require.NoError(t, err)
	t.Cleanup(leaver.Stop)

	// The second gateway gets all addresses and connections while the first one drains.
	drain := func(draining bool) error {
		_, err := lab.Hub.Kubectl(cleanUpContext(t), "", "patch", "gateways.kubelb.k8c.io", "gateway", "--type=merge", "-p", fmt.Sprintf(`{"spec":{"draining":%t}}`, draining))
		return err
	}
	t.Cleanup(func() { require.NoError(t, drain(false)) })
	require.NoError(t, drain(true))
	waitForAnnounced(t, "leaver", "2 of 2")
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	four, six := startTraffic(t, ips[0]), startTraffic(t, ips[1])
	time.Sleep(300 * time.Millisecond)
	require.NoError(t, drain(false))
	eventually(t, 20*time.Second, func() error {
		if got := hubGet(t, "default", "gateways.kubelb.k8c.io/leaver", "{.status.candidates[*]}"); got != "gateway leaver" {
			return fmt.Errorf("the candidates of the second gateway are %s", got)
		}
		return nil
	})

	require.NoError(t, leaver.Terminate())
	waitForAnnounced(t, "leaver", "0 of 2")
	waitForAnnounced(t, "gateway", "2 of 2")
	time.Sleep(3 * time.Second)
	require.False(t, leaver.Exited(), "connections are still open")
	for _, tr := range []*traffic{four, six} {
		require.Empty(t, tr.stop())
		require.Zero(t, tr.endedConnections.Load(), "the long connection went on")
		t.Logf("%s: %d requests on the long connection, %d new connections, 0 failed", tr.url, tr.keptRequests.Load(), tr.newConnections.Load())
	}
	eventually(t, 20*time.Second, func() error {
		if !leaver.Exited() {
			return fmt.Errorf("the gateway has not ended, and logs:\n%s", leaver.Tail())
		}
		return nil
	})
	tables, err := lab.On(t.Context(), host, "nft", "list", "tables")
	require.NoError(t, err)
	require.Empty(t, tables)
}

// --purge-on-exit applies only to a manager that is told to end.
func TestAManagerThatFailsDoesNotPurge(t *testing.T) {
	independentOfDataplane(t)
	ips := createService(t, "failed")
	four, six := startTraffic(t, ips[0]), startTraffic(t, ips[1])
	lab.Manager.Stop()
	var listener net.Listener
	require.NoError(t, lab.Gateway.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:9447")
		return err
	}))
	defer listener.Close()
	require.NoError(t, lab.StartManager("--purge-on-exit", "--metrics-addr=127.0.0.1:9447"))
	eventually(t, 30*time.Second, func() error {
		if !lab.Manager.Exited() {
			return fmt.Errorf("the manager still runs, and logs:\n%s", lab.Manager.Tail())
		}
		return nil
	})
	require.Contains(t, lab.Manager.Tail(), "address already in use")
	require.NoError(t, lab.StartManager())
	time.Sleep(500 * time.Millisecond)
	for _, tr := range []*traffic{four, six} {
		require.Empty(t, tr.stop())
		require.Zero(t, tr.endedConnections.Load(), "the long connection goes on")
	}
}

func TestAGatewayDrainsWithItsNodeIfAnotherGatewayCanServe(t *testing.T) {
	independentOfDataplane(t)
	ips := createService(t, "cordoned")
	applyToHub(t, "{apiVersion: v1, kind: Node, metadata: {name: drained}}")
	cleanUpHub(t, "node/drained")
	lab.Manager.Stop()
	require.NoError(t, lab.StartManager("--drain-with-node=drained"))
	t.Cleanup(func() {
		lab.Manager.Stop()
		require.NoError(t, lab.StartManager())
	})
	drain := func() { hubKubectl(t, "drain", "drained", "--ignore-daemonsets", "--timeout=30s") }
	drain()
	time.Sleep(2 * time.Second)
	waitForAnnounced(t, "gateway", "2 of 2") // There is no other gateway.

	host, err := lab.AddGateway("successor", 8)
	require.NoError(t, err)
	cleanUpHub(t, "gateways.kubelb.k8c.io/successor", "kubelb|lease/successor")
	four, six := startTraffic(t, ips[0]), startTraffic(t, ips[1])
	successor, err := lab.StartGateway(host, "successor")
	require.NoError(t, err)
	t.Cleanup(successor.Stop)
	waitForAnnounced(t, "gateway", "0 of 2")
	waitForAnnounced(t, "successor", "2 of 2")
	hubKubectl(t, "uncordon", "drained")
	drained := func() string {
		return hubGet(t, "", "gateways.kubelb.k8c.io/gateway", `{.status.conditions[?(@.type=="Drained")].status}`)
	}
	eventually(t, 20*time.Second, func() error {
		if got := drained(); got != "" {
			return fmt.Errorf("the gateway has Drained=%s", got)
		}
		return nil
	})
	drain()
	eventually(t, 20*time.Second, func() error {
		if got := drained(); got != "True" {
			return fmt.Errorf("the gateway has Drained=%q", got)
		}
		return nil
	})
	for _, tr := range []*traffic{four, six} {
		require.Empty(t, tr.stop())
		require.Zero(t, tr.endedConnections.Load(), "the long connection went on")
		t.Logf("%s: %d requests on the long connection, %d new connections, 0 failed", tr.url, tr.keptRequests.Load(), tr.newConnections.Load())
	}
	// The only remaining gateway serves although its node drains.
	successor.Stop()
	waitForAnnounced(t, "gateway", "2 of 2")
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
}
