// Package segment gives a test a host whose interfaces are connected to a switch. All of it is in one network namespace, which ends with the
// test. It needs root, and ip of iproute2.
package segment

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

// inside is the environment variable of the test's own process.
const inside = "KUBELB_TEST_IN_SEGMENT"

// Options are the options of the switch for multicast.
type Options struct {
	// Snoops: the switch passes IPv6 multicast only to members of a group, for which it sends MLD queries (RFC 4541).
	Snoops bool
	// DropsUnknown: the switch drops multicast of groups without members.
	DropsUnknown bool
}

// Segment is a switch with interfaces.
type Segment struct {
	t       *testing.T
	options Options
}

// bridge is the name of the switch.
const bridge = "switch"

// Run runs the test in a process of its own, in a network namespace with a switch.
func Run(t *testing.T, o Options, test func(s *Segment)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return
	}
	s := &Segment{t: t, options: o}
	s.IP("link add " + bridge + " type bridge mcast_snooping 0")
	s.IP("link set " + bridge + " up")
	if o.Snoops {
		s.snoop()
	}
	test(s)
}

// IP runs ip(8).
func (s *Segment) IP(arguments string) {
	s.t.Helper()
	out, err := exec.Command("ip", strings.Fields(arguments)...).CombinedOutput()
	require.NoError(s.t, err, "ip %s: %s", arguments, out)
}

// snoop turns on MLD snooping and queries. The switch needs an address for queries, and snoops after the answers.
func (s *Segment) snoop() {
	s.t.Helper()
	link, err := netlink.LinkByName(bridge)
	require.NoError(s.t, err)
	require.Eventually(s.t, func() bool {
		addresses, err := dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V6) })
		return err == nil && slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE == 0 })
	}, 10*time.Second, 10*time.Millisecond, "the switch has no address")
	s.IP("link set " + bridge + " type bridge mcast_query_response_interval 1")
	s.IP("link set " + bridge + " type bridge mcast_snooping 1 mcast_querier 1")
	time.Sleep(100 * time.Millisecond) // ten times as long as it waits for answers
}

// Plug makes an interface with this MAC address that is up and connected to the switch.
func (s *Segment) Plug(name, mac string) {
	s.t.Helper()
	s.IP("link add " + name + " address " + mac + " type veth peer name " + Port(name))
	s.IP("link set " + Port(name) + " master " + bridge + " up")
	if s.options.DropsUnknown {
		s.IP("link set " + Port(name) + " type bridge_slave mcast_flood off")
	}
	s.IP("link set " + name + " up")
}

// Port returns the name of the switch's port of an interface.
func Port(name string) string { return "to-" + name }

// Unplug removes an interface.
func (s *Segment) Unplug(name string) {
	s.t.Helper()
	s.IP("link delete " + name)
}

// Groups returns the IPv6 multicast groups that the switch passes to the interface.
func (s *Segment) Groups(name string) (groups []string) {
	s.t.Helper()
	out, err := exec.Command("bridge", "mdb", "show", "dev", bridge).CombinedOutput()
	require.NoError(s.t, err, string(out))
	for line := range strings.Lines(string(out)) {
		// dev switch port to-uplink grp ff02::1:ff00:1 temp
		fields := strings.Fields(line)
		if at := slices.Index(fields, "grp"); at > 0 && at+1 < len(fields) && slices.Contains(fields, Port(name)) {
			groups = append(groups, fields[at+1])
		}
	}
	return groups
}

// Tap receives and sends frames at an interface.
type Tap struct {
	t    *testing.T
	conn *packet.Conn
}

// Tap opens a tap, which is closed at the end of the test.
func (s *Segment) Tap(name string) *Tap {
	s.t.Helper()
	device, err := net.InterfaceByName(name)
	require.NoError(s.t, err)
	conn, err := packet.Listen(device, packet.Raw, unix.ETH_P_ALL, nil)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { conn.Close() })
	return &Tap{s.t, conn}
}

// Send sends a frame.
func (p *Tap) Send(frame []byte) {
	p.t.Helper()
	_, err := p.conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	require.NoError(p.t, err)
}

// Sees waits for a frame, and reports whether one came. It also examines frames that came before the call, once.
func (p *Tap) Sees(within time.Duration, is func(frame []byte) bool) bool {
	p.t.Helper()
	require.NoError(p.t, p.conn.SetReadDeadline(time.Now().Add(within)))
	buffer := make([]byte, 2048)
	for {
		n, _, err := p.conn.ReadFrom(buffer)
		if err != nil {
			return false
		}
		if is(buffer[:n]) {
			return true
		}
	}
}
