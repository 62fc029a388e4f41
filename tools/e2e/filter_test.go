package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Nodes have ports that are not exposed, such as of the kubelet or of a database without a password. Dataplanes need IP forwarding on the gateway's host. Without a
// filter the kernel would forward packets from any host to these ports.
func TestAGatewayDoesNotRouteBetweenItsSegments(t *testing.T) {
	ips := createService(t, "passed")
	node := lab.Nodes[0]
	reachesService := hubService(t, node.Address4)
	for _, route := range [][]string{{"198.51.100.0/24", "192.0.2.1"}, {"2001:db8:1::/64", "2001:db8:c::1"}} {
		_, err := lab.FromClient(t.Context(), "ip", "route", "add", route[0], "via", route[1])
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		for _, network := range []string{"198.51.100.0/24", "2001:db8:1::/64"} {
			_, err := lab.FromClient(context.Background(), "ip", "route", "del", network) // the test's own context has ended
			require.NoError(t, err)
		}
		lab.Manager.Stop()
		require.NoError(t, lab.StartManager())
	})
	nodes := []string{node.Address4, "[" + node.Address6 + "]"}
	clientToNode := func(address string) error {
		_, err := lab.FromClient(t.Context(), "curl", "-sS", "-o", "/dev/null", "--max-time", "1", "http://"+address+":10256/healthz")
		return err
	}
	// No program listens on this port: a host that is reached refuses the connection, and curl exits with status 7.
	nodeToClient := func(address string) error {
		_, err := lab.OnNode(t.Context(), node, "curl", "-sS", "--max-time", "1", "http://"+address+":9/")
		if err != nil && strings.Contains(err.Error(), "exit status 7:") {
			return nil
		}
		return err
	}
	checkAll := func(passes bool) error {
		for _, address := range nodes {
			if err := clientToNode(address); (err == nil) != passes {
				return fmt.Errorf("a host on the clients' segment reaches a node at %s: %v, want %v (%v)", address, err == nil, passes, err)
			}
		}
		if err := reachesService(); (err == nil) != passes {
			return fmt.Errorf("a host on the clients' segment reaches a Service of the management cluster: %v, want %v (%v)", err == nil, passes, err)
		}
		for _, address := range []string{"192.0.2.100", "[2001:db8:c::100]"} {
			if err := nodeToClient(address); (err == nil) != passes {
				return fmt.Errorf("a node reaches a host on the clients' segment at %s: %v, want %v (%v)", address, err == nil, passes, err)
			}
		}
		return nil
	}
	served := func() {
		t.Helper()
		for _, ip := range ips {
			reachesPods(t, ip, 80, 1)
		}
	}
	lab.Manager.Stop()
	require.NoError(t, lab.StartManager("--forbidden-cidrs="+hubServices))
	eventually(t, 20*time.Second, func() error { return checkAll(false) })
	served()

	lab.Manager.Stop()
	require.NoError(t, checkAll(false), "the filter works while the manager is stopped")
	served()
	require.NoError(t, lab.StartManager("--router"))
	eventually(t, 20*time.Second, func() error { return checkAll(true) })
	served()
}

// hubServices is the network of Service addresses in the management cluster, with 10.96.0.10.
const hubServices = "10.96.0.0/12"

// hubService makes the gateway's host rewrite connections to a Service of the management cluster, as its kube-proxy would. It returns a function by which a host on
// the clients' segment connects to it.
func hubService(t *testing.T, pod string) func() error {
	onGateway := func(command ...string) {
		_, err := lab.OnGateway(context.Background(), command...)
		require.NoError(t, err)
	}
	onGateway("nft", "add table ip services; add chain ip services prerouting { type nat hook prerouting priority -100; }; "+
		"add rule ip services prerouting ip daddr 10.96.0.10 tcp dport 80 dnat to "+pod+":10256; "+
		"add chain ip services postrouting { type nat hook postrouting priority 100; }; add rule ip services postrouting ip daddr "+pod+" tcp dport 10256 masquerade")
	t.Cleanup(func() { onGateway("nft", "delete table ip services") })
	_, err := lab.FromClient(t.Context(), "ip", "route", "add", hubServices, "via", "192.0.2.1")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := lab.FromClient(context.Background(), "ip", "route", "del", hubServices)
		require.NoError(t, err)
	})
	return func() error {
		_, err := lab.FromClient(t.Context(), "curl", "-sS", "-o", "/dev/null", "--max-time", "1", "http://10.96.0.10/healthz")
		return err
	}
}
