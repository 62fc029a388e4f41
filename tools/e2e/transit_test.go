package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What nodes have at their addresses is no Service: a kubelet, a health check, a database without a password. A gateway's host forwards, since
// dataplanes need that, and the kernel does so for whoever sends it a packet.
func TestAGatewayIsNoRouterForStrangers(t *testing.T) {
	ips := serve(t, "passed")
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
	stranger := func(address string) error {
		_, err := lab.FromClient(t.Context(), "curl", "-sS", "-o", "/dev/null", "--max-time", "1", "http://"+address+":10256/healthz")
		return err
	}
	// Nobody listens there: a host that is reached says so, and curl ends with status 7.
	outwards := func(address string) error {
		_, err := lab.OnNode(t.Context(), node, "curl", "-sS", "--max-time", "1", "http://"+address+":9/")
		if err != nil && strings.Contains(err.Error(), "exit status 7:") {
			return nil
		}
		return err
	}
	all := func(passes bool) error {
		for _, address := range nodes {
			if err := stranger(address); (err == nil) != passes {
				return fmt.Errorf("a host on the clients' segment reaches a node at %s: %v, want %v (%v)", address, err == nil, passes, err)
			}
		}
		if err := reachesService(); (err == nil) != passes {
			return fmt.Errorf("a host on the clients' segment reaches a Service of the management cluster: %v, want %v (%v)", err == nil, passes, err)
		}
		for _, address := range []string{"192.0.2.100", "[2001:db8:c::100]"} {
			if err := outwards(address); (err == nil) != passes {
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
	eventually(t, 20*time.Second, func() error { return all(false) })
	served()

	lab.Manager.Stop()
	require.NoError(t, all(false), "strangers are kept out while the manager is away")
	served()
	require.NoError(t, lab.StartManager("--router"))
	eventually(t, 20*time.Second, func() error { return all(true) })
	served()
}

// hubServices are the addresses of the management cluster's Services, of which 10.96.0.10 is one.
const hubServices = "10.96.0.0/12"

// hubService has the gateway's host rewrite connections to a Service of the management cluster as its kube-proxy would, and returns how a host on the
// clients' segment tries to reach it.
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
