package hostcheck

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

func setDown(name string) error {
	link, err := netlink.LinkByName(name)
	return errors.Join(err, netlink.LinkSetDown(link))
}

func TestAnInterfaceIsCheckedForAllThatFramesNeed(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		assert.NoError(t, errors.Join(preflighttest.Plug("eth0"), preflighttest.Plug("eth1"), preflighttest.Plug("eth2"), setDown("eth1"), setDown("eth2-far")))
		assert.Equal(t, "interface eth0: is up", Needs{Answers: true}.interfaceCheck("eth0").String())
		for name, want := range map[string]string{
			"eth1": "interface eth1: is down; run: ip link set dev eth1 up",
			"lo":   "interface lo: is not an Ethernet interface, so it has neither ARP nor NDP; name an Ethernet interface by --announce-interfaces, or use --announce=bgp",
		} {
			check := Needs{Answers: true}.interfaceCheck(name)
			assert.Equal(t, dataplane.CheckMissing, check.State, name)
			assert.True(t, check.Required(), "the gateway answers at it")
			assert.Equal(t, want, check.String())
			check = Needs{}.interfaceCheck(name)
			assert.False(t, check.Required(), "the gateway only hears others at it")
			assert.Equal(t, "heartbeats of other gateways on this interface", check.Costs)
		}
		// The kernel notices a lost carrier up to a second later.
		unplugged := Needs{Answers: true}.interfaceCheck("eth2")
		for begun := time.Now(); unplugged.State == dataplane.CheckOK && time.Since(begun) < 5*time.Second; time.Sleep(10 * time.Millisecond) {
			unplugged = Needs{Answers: true}.interfaceCheck("eth2")
		}
		assert.Equal(t, "interface eth2: is up and has no carrier; connect its cable, or bring up the device at the other end", unplugged.String())

		missing := Needs{Answers: true}.interfaceCheck("eth9")
		assert.Equal(t, dataplane.CheckMissing, missing.State)
		assert.Equal(t, "no interface has this name", missing.Found)
		advice, names, found := strings.Cut(missing.Advice, "; this host has ")
		assert.Equal(t, "name the interfaces of the clients' segment by --announce-interfaces", advice)
		assert.True(t, found)
		assert.Subset(t, strings.Split(names, ", "), []string{"eth0", "eth1", "eth2"})
		assert.NotContains(t, strings.Split(names, ", "), "lo", "it is never a clients' segment")
	})
}

func TestAnInterfaceThatIsGoneHasNoHardwareType(t *testing.T) {
	_, err := isEthernet("no-such-thing")
	require.ErrorContains(t, err, "hardware type of interface no-such-thing: ")
	_, err = isEthernet("a-name-that-is-longer-than-any")
	require.ErrorContains(t, err, "interface a-name-that-is-longer-than-any: ")
}

// Of the two settings the kernel uses the larger one, and only 1 is strict.
func TestAStrictReversePathFilterIsReportedWithTheCommandThatRelaxesIt(t *testing.T) {
	for _, c := range []struct {
		own, all, effective string
		state               dataplane.CheckState
	}{
		{"0", "0", "0", dataplane.CheckOK},
		{"1", "0", "1", dataplane.CheckMissing},
		{"0", "1", "1", dataplane.CheckMissing},
		{"2", "0", "2", dataplane.CheckOK},
		{"2", "1", "2", dataplane.CheckOK},
		{"1", "2", "2", dataplane.CheckOK},
	} {
		host := preflight.Host{Root: t.TempDir()}
		for name, value := range map[string]string{"eth0": c.own, "all": c.all} {
			dir := host.Root + "/proc/sys/net/ipv4/conf/" + name
			require.NoError(t, os.MkdirAll(dir, 0o700))
			require.NoError(t, os.WriteFile(dir+"/rp_filter", []byte(value+"\n"), 0o600))
		}
		check := reversePathCheck(host, "eth0")
		require.Equal(t, c.state, check.State, "%s and %s", c.own, c.all)
		require.Contains(t, check.Found, "the effective value is "+c.effective+", ")
		require.False(t, check.Required(), "other packets arrive")
		if c.state == dataplane.CheckMissing {
			require.Contains(t, check.Fix(), "run: sysctl -w net.ipv4.conf.eth0.rp_filter=2")
		}
	}
	check := reversePathCheck(preflight.Host{Root: t.TempDir()}, "eth0")
	require.Equal(t, dataplane.CheckUnknown, check.State)
	require.Equal(t, "sysctl net.ipv4.conf.eth0.rp_filter", check.Subject)
	require.Empty(t, check.Fix())
}

func TestOnlyWhatTheFlagsNeedIsChecked(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		assert.NoError(t, preflighttest.Plug("eth0", "192.0.2.1/24"))
		at := func(subject string, n Needs) (found dataplane.Check) {
			for _, c := range n.Checks(t.Context()) {
				if strings.HasPrefix(c.Subject, subject) {
					found = c
				}
			}
			return found
		}
		for subject, needs := range map[string]Needs{
			"capability NET_RAW":                  {Packets: true},
			"interfaces":                          {Answers: true},
			"interface eth0":                      {Interfaces: []string{"eth0"}},
			"sysctl net.ipv4.conf.eth0.rp_filter": {Interfaces: []string{"eth0"}},
			"IPv4 at interface eth0":              {Interfaces: []string{"eth0"}, Answers: true, BeforeStart: true},
			"port tcp 127.0.0.1:0 for metrics":    {Ports: []Port{{Network: "tcp", Address: "127.0.0.1:0", For: "metrics"}}},
			"directory /":                         {StateDir: "/"},
			"nftables tables kubelb-transit":      {BeforeStart: true},
			"interface kubelb-watch":              {BeforeStart: true, Tries: true},
			"module veth":                         {Tries: true},
		} {
			assert.NotEmpty(t, at(subject, needs).Subject, subject)
			assert.Empty(t, at(subject, Needs{}).Subject, subject)
		}
		assert.Empty(t, at("interfaces", Needs{Answers: true, Interfaces: []string{"eth0"}}).Subject, "an interface is named")
		assert.Empty(t, at("IPv4 at", Needs{Interfaces: []string{"eth0"}, Answers: true}).Subject, "a gateway that runs reports it itself")
		assert.Empty(t, at("sysctl net.ipv4.conf.eth9", Needs{Interfaces: []string{"eth9"}}).Subject, "it does not exist, which another check says")
		none := at("interfaces", Needs{Answers: true})
		assert.Equal(t, dataplane.CheckMissing, none.State)
		assert.True(t, none.Required())
	})
}

// An upgrade by hand may check the host while the gateway runs.
func TestAPortThatTheGatewayItselfHasIsNoProblem(t *testing.T) {
	own, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	require.NoError(t, os.WriteFile("/proc/self/comm", []byte(self), 0))
	defer func() { require.NoError(t, os.WriteFile("/proc/self/comm", own, 0)) }()
	check := Port{Network: "tcp", Address: listener.Addr().String(), For: "metrics", Flag: "--metrics-addr"}.check()
	require.Equal(t, dataplane.CheckOK, check.State)
	require.Equal(t, "is used by kubelb-manager (process "+strconv.Itoa(os.Getpid())+"), which runs already", check.Found)
	require.Empty(t, check.Fix())
}

func TestAnAddressThatIsNoneHasNoOwner(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"} {
		name, pid := Port{Network: "tcp", Address: address}.owner()
		require.Empty(t, name, address)
		require.Zero(t, pid, address)
	}
	check := Port{Network: "tcp", Address: "127.0.0.1:70000", For: "metrics"}.check()
	require.Equal(t, dataplane.CheckMissing, check.State)
	require.Empty(t, check.Fix(), "no flag sets it")
}

func TestTheDistanceOfATimeThatIsKnownToASecond(t *testing.T) {
	first := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	last := first.Add(2 * time.Second)
	for at, want := range map[time.Duration]time.Duration{
		-time.Hour: time.Hour, -1001 * time.Millisecond: 1001 * time.Millisecond, -time.Second: 0, 0: 0, time.Second: 0, 2 * time.Second: 0, 2001 * time.Millisecond: time.Millisecond, time.Hour: time.Hour - 2*time.Second,
	} {
		require.Equal(t, want, distance(first, last, first.Add(at)), at)
	}
}

func TestFreeSpaceThatCannotBeReadIsUnknown(t *testing.T) {
	_, _, err := lowSpace("/no/such/place", "the file system of /no/such/place")
	require.ErrorContains(t, err, "free space on the file system of /no/such/place: ")
	check := storageCheck("a\x00b")
	require.Equal(t, dataplane.CheckUnknown, check.State)
	require.False(t, check.Required())
}
