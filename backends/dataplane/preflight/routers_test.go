package preflight

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
)

// ipv6Interface returns the files of an interface: its count of router advertisements, and its settings.
func ipv6Interface(name, advertisements, accepts, forwards string) map[string]string {
	return map[string]string{
		"proc/thread-self/net/dev_snmp6/" + name: "ifIndex                         \t2\nIcmp6InRouterSolicits           \t7\nIcmp6InRouterAdvertisements     \t" + advertisements + "\n",
		"proc/sys/" + AcceptRA(name):             accepts + "\n",
		"proc/sys/" + ForwardsIPv6(name):         forwards + "\n",
	}
}

func TestTheCommandForForwardingKeepsRoutesLearnedFromRouters(t *testing.T) {
	files := map[string]string{"proc/sys/net/ipv6/conf/all/forwarding": "0\n"}
	maps.Copy(files, ipv6Interface("eth0", "3", "1", "0"))
	maps.Copy(files, ipv6Interface("eth1.100", "1", "1", "0"))
	maps.Copy(files, ipv6Interface("eth2", "3", "0", "0")) // a program handles them instead of the kernel
	maps.Copy(files, ipv6Interface("eth3", "3", "2", "0")) // it accepts them already
	maps.Copy(files, ipv6Interface("veth1", "0", "1", "0"))
	const file = " >> /etc/sysctl.d/90-kubelb.conf"
	require.Equal(t, "sysctl -w net.ipv6.conf.eth0.accept_ra=2 && echo net.ipv6.conf.eth0.accept_ra=2"+file+
		" && sysctl -w net/ipv6/conf/eth1.100/accept_ra=2 && echo net/ipv6/conf/eth1.100/accept_ra=2"+file+
		" && sysctl -w net.ipv6.conf.all.forwarding=1 && echo net.ipv6.conf.all.forwarding=1"+file, hostWith(t, files).ForwardingIPv6("").Command)
}

func TestAnInterfaceThatForwardsAndIgnoresRouterAdvertisementsIsLimited(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		state dataplane.CheckState
	}{
		"it forwards and the kernel hears routers unless it forwards": {ipv6Interface("eth0", "3", "1", "1"), dataplane.CheckMissing},
		"it forwards and the kernel hears routers always":             {ipv6Interface("eth0", "3", "2", "1"), dataplane.CheckOK},
		"it does not forward": {ipv6Interface("eth0", "3", "1", "0"), dataplane.CheckOK},
	} {
		t.Run(name, func(t *testing.T) {
			checks := hostWith(t, c.files).RouterAdvertisements()
			require.Len(t, checks, 1)
			require.Equal(t, c.state, checks[0].State)
			require.False(t, checks[0].Required())
		})
	}
	require.Equal(t, "sysctl net.ipv6.conf.eth0.accept_ra: is 1: the kernel ignores router advertisements where it forwards, and a router sends them there; "+
		"does not work: IPv6 routes by router advertisement; run: sysctl -w net.ipv6.conf.eth0.accept_ra=2 && echo net.ipv6.conf.eth0.accept_ra=2 >> /etc/sysctl.d/90-kubelb.conf",
		hostWith(t, ipv6Interface("eth0", "3", "1", "1")).RouterAdvertisements()[0].String())
}

func TestAnInterfaceWithoutARouterOrHandledByAProgramIsNotChecked(t *testing.T) {
	require.Empty(t, hostWith(t, ipv6Interface("eth0", "0", "1", "1")).RouterAdvertisements())
	require.Empty(t, hostWith(t, ipv6Interface("eth0", "3", "0", "1")).RouterAdvertisements())
	require.Empty(t, hostWith(t, nil).RouterAdvertisements(), "a kernel without IPv6")
}

func TestEachFamilyHasItsOwnForwardingCheck(t *testing.T) {
	host := hostWith(t, map[string]string{"proc/sys/net/ipv4/ip_forward": "1\n", "proc/sys/net/ipv6/conf/all/forwarding": "0\n"})
	require.Equal(t, dataplane.CheckOK, host.ForwardingIPv4("IPv4 frontends").State)
	require.Equal(t, "is 0: this host forwards no IPv6 packets; does not work: IPv6 frontends", host.ForwardingIPv6("IPv6 frontends").Outcome())
}

func TestSettingsOfChangesWhenAValueChanges(t *testing.T) {
	settings := func(forwards string) string {
		host := hostWith(t, map[string]string{"proc/sys/net/ipv4/ip_forward": forwards, "proc/sys/net/ipv4/conf/eth0.100/rp_filter": "2"})
		return host.SettingsOf([]dataplane.Check{
			{Group: dataplane.GroupSysctls, Subject: "sysctl net.ipv4.ip_forward"},
			{Group: dataplane.GroupSysctls, Subject: "sysctl net/ipv4/conf/eth0.100/rp_filter"},
			{Group: dataplane.GroupModules, Subject: "module nft_ct"}})
	}
	require.Equal(t, "net.ipv4.ip_forward 1 <nil>\nnet/ipv4/conf/eth0.100/rp_filter 2 <nil>\n", settings("1"))
	require.Equal(t, settings("1"), settings("1"))
	require.NotEqual(t, settings("1"), settings("0"))
}
