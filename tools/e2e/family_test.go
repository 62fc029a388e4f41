package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A gateway loses only IPv6 on the clients' segment. Another gateway gets its IPv6 addresses. If there is none, `Announced` is False.
func TestIPv6AddressesOfAGatewayWithoutIPv6MoveToAnotherOne(t *testing.T) {
	independentOfDataplane(t)
	ips := createService(t, "lost")
	host, err := lab.AddGateway("spare", 6)
	require.NoError(t, err)
	cleanUpHub(t, "gateways.kubelb.k8c.io/spare", "kubelb|lease/spare")
	spare, err := lab.StartGateway(host, "spare")
	require.NoError(t, err)
	t.Cleanup(spare.Stop)
	drain := func(draining bool) error {
		_, err := lab.Hub.Kubectl(cleanUpContext(t), "", "patch", "gateways.kubelb.k8c.io", "gateway", "--type=merge", "-p", fmt.Sprintf(`{"spec":{"draining":%t}}`, draining))
		return err
	}
	t.Cleanup(func() { require.NoError(t, drain(false)) })
	waitForStatus := func(gateway, path, want string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if got := hubGet(t, "default", "gateways.kubelb.k8c.io/"+gateway, path); !regexp.MustCompile(want).MatchString(got) {
				return fmt.Errorf("gateway %s has %s %q, want %s", gateway, path, got, want)
			}
			return nil
		})
	}
	setIPv6 := func(enabled bool) {
		t.Helper()
		_, err := lab.On(t.Context(), host, "sh", "-c", "echo "+map[bool]string{true: "0", false: "1"}[enabled]+" > /proc/sys/net/ipv6/conf/clients/disable_ipv6")
		require.NoError(t, err)
	}
	require.NoError(t, drain(true))
	waitForAnnounced(t, "spare", "2 of 2")
	waitForCondition(t, "lost", "True Ready")

	setIPv6(false)
	waitForAnnounced(t, "spare", "1 of 2")
	waitForCondition(t, "lost", "False NotAnnounced")
	page, status := kubelb(t, "status")
	require.Equal(t, 1, status, page)
	require.Contains(t, page, ips[1]+" is not announced: ")
	require.Contains(t, page, "gateway spare: IPv6 is turned off on interface clients; run: sysctl -w net.ipv6.conf.clients.disable_ipv6=0")
	reachesPods(t, ips[0], 80, 1)

	require.NoError(t, drain(false))
	waitForStatus("gateway", "{.status.withoutIPv6[*]}", "^spare$")
	waitForStatus("gateway", "{.status.candidates[*]}", "^gateway spare$")
	waitForCondition(t, "lost", "True Ready")
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
	eventually(t, 20*time.Second, func() error { // a gateway on a busy host may lose its Lease for a short time
		path, _ := kubelb(t, "trace", "["+ips[1]+"]:80")
		if !regexp.MustCompile(`(?m)^gateway +gateway, of gateway$`).MatchString(path) {
			return errors.New(path)
		}
		return nil
	})
	eventually(t, 20*time.Second, func() error {
		if events := events(t, "lost"); !strings.Contains(events, "Ready: served again") {
			return fmt.Errorf("no event of the Service reports the recovery:\n%s", events)
		}
		return nil
	})

	setIPv6(true)
	waitForStatus("spare", "{.status.silent[*].message}", "^no IPv6 route to clients leads out of interface clients: ")
	_, err = lab.On(t.Context(), host, "ip", "-6", "address", "add", "2001:db8:c::6/64", "dev", "clients")
	require.NoError(t, err)
	waitForStatus("gateway", "{.status.withoutIPv6}", "^$")
	waitForStatus("spare", "{.status.silent}", "^$")
	for _, ip := range ips {
		reachesPods(t, ip, 80, 1)
	}
}
