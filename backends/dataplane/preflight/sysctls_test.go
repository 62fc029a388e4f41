package preflight

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
)

func TestTheForwardingCheckHasTheCommandThatFixesIt(t *testing.T) {
	checks := hostWith(t, map[string]string{"proc/sys/net/ipv4/ip_forward": "0\n"}).Forwarding("")
	require.Len(t, checks, 2)
	require.Equal(t, "sysctl net.ipv4.ip_forward: is 0: this host forwards no IPv4 packets; "+
		"run: sysctl -w net.ipv4.ip_forward=1 && echo net.ipv4.ip_forward=1 >> /etc/sysctl.d/90-kubelb.conf", checks[0].String())
	require.Equal(t, dataplane.CheckMissing, checks[0].State)
	require.Equal(t, dataplane.CheckOK, checks[1].State, "a kernel without IPv6 forwards none")
}

func TestAHostWithoutForwardingIsRefusedByFamily(t *testing.T) {
	host := hostWith(t, map[string]string{"proc/sys/net/ipv4/ip_forward": "1\n", "proc/sys/net/ipv6/conf/all/forwarding": "0\n"})
	require.NoError(t, host.RequireForwarding(true))
	require.EqualError(t, host.RequireForwarding(false), "sysctl net.ipv6.conf.all.forwarding is 0, so this host forwards no IPv6 packets: run 'sysctl -w net.ipv6.conf.all.forwarding=1' and make it permanent")
	require.ErrorIs(t, hostWith(t, nil).RequireForwarding(false), fs.ErrNotExist, "a kernel without IPv6")
}

func TestTheNameOfASysctlOfAVLANIsItsPath(t *testing.T) {
	require.Equal(t, "net.ipv4.conf.eth0.rp_filter", SysctlName("net/ipv4/conf/eth0/rp_filter"))
	require.Equal(t, "net/ipv4/conf/eth0.100/rp_filter", SysctlName("net/ipv4/conf/eth0.100/rp_filter"))
}

func TestCapabilityAcceptsImplyingCapabilities(t *testing.T) {
	host := hostWith(t, map[string]string{"proc/thread-self/status": "Name:\tx\nCapEff:\t0000000000201000\n"}) // NET_ADMIN and SYS_ADMIN
	require.Equal(t, dataplane.CheckOK, host.Capability(NetAdmin, "").State)
	require.Equal(t, "SYS_ADMIN implies it", host.Capability(BPF, "", SysAdmin).Found)
	missing := host.Capability(NetRaw, "")
	require.Equal(t, "capability NET_RAW: this process does not have it; run it as root; in a container, add NET_RAW to securityContext.capabilities.add; in a unit of systemd, add CAP_NET_RAW to AmbientCapabilities and CapabilityBoundingSet", missing.String())
	require.Equal(t, dataplane.CheckUnknown, hostWith(t, nil).Capability(NetAdmin, "").State)
}
