package forwarding

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

// sysctlsWith returns sysctls with these values.
func sysctlsWith(t *testing.T, values map[string]string) sysctls {
	t.Helper()
	s := sysctls(t.TempDir())
	for key, value := range values {
		path := filepath.Join(string(s), key)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(value), 0o644))
	}
	return s
}

func (s sysctls) read(t *testing.T, key string) string {
	t.Helper()
	value, err := os.ReadFile(filepath.Join(string(s), key))
	require.NoError(t, err)
	return string(value)
}

func TestForwardingIsTurnedOnAndAForwardingHostIsNotChanged(t *testing.T) {
	for _, c := range []struct{ before, after string }{{"0\n", "1"}, {"1\n", "1\n"}, {"2\n", "2\n"}} {
		s := sysctlsWith(t, map[string]string{forwardsIPv4: c.before})
		require.NoError(t, s.enableForwarding(), "the kernel has no IPv6")
		require.Equal(t, c.after, s.read(t, forwardsIPv4))
	}
}

func TestInterfacesKeepLearningFromRouters(t *testing.T) {
	for _, c := range []struct{ about, name, accepts, forwards, after string }{
		{"an interface that learns unless it forwards", "eth0", "1\n", "0\n", "2"},
		{"an interface where another program learns", "eth0", "0\n", "0\n", "0\n"},
		{"an interface that always learns", "eth0", "2\n", "0\n", "2\n"},
		{"an interface that forwards already, and so learns nothing", "eth0", "1\n", "1\n", "1\n"},
		{"later interfaces, such as a container's", "default", "1\n", "0\n", "1\n"},
		{"all, which has no effect", "all", "1\n", "0\n", "1\n"},
	} {
		s := sysctlsWith(t, map[string]string{preflight.ForwardsIPv6("all"): "0\n", preflight.AcceptRA(c.name): c.accepts, preflight.ForwardsIPv6(c.name): c.forwards})
		require.NoError(t, s.enableForwarding())
		require.Equal(t, c.after, s.read(t, preflight.AcceptRA(c.name)), c.about)
		require.Equal(t, "1", s.read(t, preflight.ForwardsIPv6("all")))
	}
	s := sysctlsWith(t, map[string]string{preflight.ForwardsIPv6("all"): "1\n", preflight.AcceptRA("eth0"): "1\n", preflight.ForwardsIPv6("eth0"): "0\n"})
	require.NoError(t, s.enableForwarding())
	require.Equal(t, "1\n", s.read(t, preflight.AcceptRA("eth0")), "a host that forwards already loses no route now")
}

// segment is the network namespace of a host with the interface eth0. A router sends by the other end, wire.
type segment struct{ assert *assert.Assertions }

// onSegment calls f in a network namespace of its own, where the kernel accepts router advertisements unless it forwards.
func onSegment(t *testing.T, f func(segment)) {
	t.Helper()
	preflighttest.InNetworkNamespace(t, func() {
		s := segment{assert.New(t)} // f runs on another goroutine, where require must not be used
		s.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
		s.run("ip", "link", "set", "wire", "up")
		s.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
		s.run("ip", "link", "set", "eth0", "up")
		f(s)
	})
}

func (s segment) run(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	s.assert.NoError(err, "%v: %s", argv, out)
	return string(out)
}

// advertise sends router advertisements (RFC 4861, 4.2) until the host has a route by the router. It returns whether the host has it.
func (s segment) advertise(router string) bool {
	from, to := net.ParseIP(router), net.IPv6linklocalallnodes
	body := []byte{64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // hop limit, flags, a lifetime of 1800 s, and zeros
	message, err := (&icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}).Marshal(icmp.IPv6PseudoHeader(from, to))
	s.assert.NoError(err)
	all := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	header := []byte{0x60, 0, 0, 0, 0, byte(len(message)), unix.IPPROTO_ICMPV6, 255}
	frame := slices.Concat([]byte(all), []byte{2, 0, 0, 0, 0, 1, 0x86, 0xdd}, header, []byte(from), []byte(to), message)
	device, err := net.InterfaceByName("wire")
	s.assert.NoError(err)
	socket, err := packet.Listen(device, packet.Raw, unix.ETH_P_IPV6, nil)
	if !s.assert.NoError(err) {
		return false
	}
	defer socket.Close()
	for range 20 {
		_, err = socket.WriteTo(frame, &packet.Addr{HardwareAddr: all})
		s.assert.NoError(err)
		time.Sleep(50 * time.Millisecond)
		if s.routed(router) {
			return true
		}
	}
	return false
}

// routed reports whether there is a default route by the router.
func (s segment) routed(router string) bool {
	return strings.Contains(s.run("ip", "-6", "route", "show", "default"), router)
}

func TestAPreparedHostKeepsItsRoutesFromRouterAdvertisements(t *testing.T) {
	onSegment(t, func(s segment) {
		s.assert.True(s.advertise("fe80::1"))
		s.assert.NoError(Enable())
		s.assert.Equal("1\n", s.run("sysctl", "-n", "net.ipv6.conf.eth0.forwarding"))
		s.assert.True(s.routed("fe80::1"), "the kernel has removed the route")
		s.assert.True(s.advertise("fe80::2"), "the kernel learns no new routes")
	})
}

func TestPreflightGivesTheCommandForAForwardingHostThatIgnoresItsRouter(t *testing.T) {
	onSegment(t, func(s segment) {
		s.assert.True(s.advertise("fe80::1"))
		s.assert.Contains(preflight.Host{}.ForwardingIPv6("").Command, "sysctl -w net.ipv6.conf.eth0.accept_ra=2 && ")
		s.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
		s.assert.False(s.routed("fe80::1"), "this kernel keeps the route")
		s.assert.False(s.advertise("fe80::2"))
		checks := dataplane.Lacking(preflight.Host{}.RouterAdvertisements())
		if !s.assert.Len(checks, 1) {
			return
		}
		now, _, _ := strings.Cut(checks[0].Command, " && ")
		s.run("sh", "-ec", now)
		s.assert.True(s.advertise("fe80::2"))
		s.assert.Empty(dataplane.Lacking(preflight.Host{}.RouterAdvertisements()))
	})
}
