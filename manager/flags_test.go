package manager

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"kubelb.k8c.io/manager/gateway"
	"kubelb.k8c.io/manager/hostcheck"
)

// parsed are the options of a command line.
func parsed(t *testing.T, args ...string) *options {
	t.Helper()
	var o options
	require.NoError(t, o.parse(args, io.Discard))
	return &o
}

func TestAFlagThatCannotBeIsRefusedByNameWithWhatToUse(t *testing.T) {
	for arg, says := range map[string]string{
		"--gateway-lease=1500ms":       "--gateway-lease=1.5s: use whole seconds, 1s to 10m",
		"--gateway-lease=0s":           "--gateway-lease=0s: use whole seconds",
		"--gateway-lease=11m":          "--gateway-lease=11m0s: use whole seconds",
		"--tenant-token-lifetime=1m":   "--tenant-token-lifetime=1m0s: use 10m0s or more",
		"--drain-timeout=-1s":          "--drain-timeout=-1s: use 0s or more",
		"--when-alone=stay":            "--when-alone=stay: use keep or withdraw",
		"--log-level=loud":             "loud",
		"--log-format=xml":             "xml",
		"--backend-option=xdp":         `"xdp" is not key=value`,
		"--backend-option==native":     `"=native" is not key=value`,
		"--gateway-label=rack":         `"rack" is not key=value`,
		"--no-such-flag":               "no-such-flag",
		"--kubeconfig=/does/not/exist": "management cluster: ",
	} {
		require.ErrorContains(t, Run(t.Context(), []string{"--gateway-name=g", arg}, io.Discard, io.Discard), says, arg)
	}
}

func TestHelpIsNoError(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"preflight", "--help"}} {
		require.NoError(t, Run(t.Context(), args, io.Discard, io.Discard))
	}
}

func TestTriesComeFromOneAddressOfEachFamilyAtMost(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.6"), netip.MustParseAddr("2001:db8::6")
	for flag, want := range map[string][]netip.Addr{"192.0.2.6": {four}, "2001:db8::6": {six}, "192.0.2.6,2001:db8::6": {four, six}, "2001:db8::6,192.0.2.6": {six, four}} {
		every, from, err := parsed(t, "--try-from="+flag).tries()
		require.NoError(t, err, flag)
		require.Equal(t, 20*time.Second, every)
		require.Equal(t, want, from, flag)
	}
	for _, flag := range []string{"", "kubelb", "192.0.2.6,192.0.2.7", "2001:db8::6,2001:db8::7", "fe80::1%eth0", "192.0.2.6, 2001:db8::6"} {
		_, _, err := parsed(t, "--try-from="+flag).tries()
		require.ErrorContains(t, err, "--try-from="+flag+": use an IPv4 address, an IPv6 address, or both", flag)
	}
	every, _, err := parsed(t, "--try-every=0").tries()
	require.NoError(t, err)
	require.Zero(t, every, "no tries")
	_, _, err = parsed(t, "--try-every=4s").tries()
	require.ErrorContains(t, err, "--try-every=4s: use 5s or more")
}

func TestPrefixesAreReadWithBlanksAndHostBits(t *testing.T) {
	for text, want := range map[string][]netip.Prefix{
		"":                             nil,
		" , ":                          nil,
		"10.96.0.1/12":                 {netip.MustParsePrefix("10.96.0.0/12")},
		"10.96.0.0/12, 2001:db8::1/64": {netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("2001:db8::/64")},
	} {
		got, err := parsePrefixes(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"10.96.0.1", "10.96.0.0/33", "pods"} {
		_, err := parsePrefixes(text)
		require.ErrorContains(t, err, text)
	}
}

func TestPortsAreCheckedThatTheFlagsHaveTheGatewayListenAt(t *testing.T) {
	flagsOf := func(ports []hostcheck.Port) (flags []string) {
		for _, p := range ports {
			flags = append(flags, p.Network+" "+p.Address+" "+p.Flag)
		}
		return flags
	}
	metrics, health := "tcp :9443 --metrics-addr", "tcp :8081 --health-probe-bind-address"
	require.Equal(t, []string{metrics, health}, flagsOf(parsed(t).ports()))
	require.Equal(t, []string{health}, flagsOf(parsed(t, "--metrics-addr=0").ports()))
	require.Empty(t, parsed(t, "--metrics-addr=0", "--health-probe-bind-address=").ports())
	require.Equal(t, []string{metrics, health, "udp :3784 "}, flagsOf(parsed(t, "--announce=bgp").ports()), "BFD has a port by RFC 5881, and no flag")
}

func TestAHostIsCheckedForWhatTheFlagsNeed(t *testing.T) {
	needs := parsed(t, "--announce-interfaces=eth0").needs()
	require.Equal(t, []string{"eth0"}, needs.Interfaces)
	require.True(t, needs.Answers && needs.Packets && needs.Tries, "layer2, with tries")
	needs = parsed(t, "--announce=bgp", "--try-every=0").needs()
	require.True(t, needs.Packets, "heartbeats")
	require.False(t, needs.Answers || needs.Tries)
	require.False(t, parsed(t, "--announce=none").needs().Packets)
}

func TestABackendIsToldItsOptionsAndItsDirectory(t *testing.T) {
	b := parsed(t, "--gateway-name=g", "--state-dir=/state", "--backend-checksum=abc", "--backend-option=xdp=native", "--backend-option=empty=").pluginFor("/bin/of-mine")
	require.Equal(t, "/bin/of-mine", b.Path)
	require.Equal(t, "abc", b.Checksum)
	require.Equal(t, "/state", b.Config.StateDir)
	require.Equal(t, map[string]string{"xdp": "native", "empty": ""}, map[string]string(b.Config.Options))
}

func TestTenantsAreGivenTheCAThatTheFlagNamesElseThatOfTheKubeconfig(t *testing.T) {
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "ca")
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
		return name
	}
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: []byte("within")}}
	ca := func(args ...string) string {
		got, err := parsed(t, args...).ca(config)
		require.NoError(t, err)
		return string(got)
	}
	require.Equal(t, "within", ca())
	config.CAFile = file("beside")
	require.Equal(t, "beside", ca())
	require.Equal(t, "named", ca("--api-server-ca="+file("named")))
	_, err := parsed(t, "--api-server-ca=/does/not/exist").ca(config)
	require.ErrorContains(t, err, "CA for the tenants' kubeconfigs: open /does/not/exist")
}

func TestWhatAnnouncesIsChosenByTheFlagWhichNamesWhatItLacks(t *testing.T) {
	for says, args := range map[string][]string{
		"--announce-interfaces is required with --announce=layer2": {"--announce=layer2"},
		"--announce=arp: use layer2, bgp or none":                  {"--announce=arp"},
		"--bgp-router-id=router: use an IPv4 address":              {"--announce=bgp", "--bgp-router-id=router"},
		"--bgp-router-id=2001:db8::1: use an IPv4 address":         {"--announce=bgp", "--bgp-router-id=2001:db8::1"},
	} {
		var g gateway.Options
		require.ErrorContains(t, parsed(t, args...).announcer(nil, &g), says)
		require.Nil(t, g.Announcer)
	}
}
