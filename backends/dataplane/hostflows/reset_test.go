package hostflows

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/preflight"
)

func TestAHostIsToldThatItsIdleConnectionHasEnded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var ended, other error
		require.True(t, preflight.InNetworkNamespace(func() { ended, other = resetOneOfTwo(t, address) }))
		require.ErrorIs(t, ended, unix.ECONNRESET, "%s: a client that sends nothing", address)
		require.NoError(t, other, "%s: another connection", address)
	}
}

// resetOneOfTwo resets the client of one of two connections to a server.
func resetOneOfTwo(t *testing.T, address string) (ended, other error) {
	link, err := netlink.LinkByName("lo")
	if err := errors.Join(err, netlink.LinkSetUp(link)); err != nil {
		return err, err
	}
	server, err := net.Listen("tcp", address)
	if err != nil {
		return err, err
	}
	defer server.Close()
	go echo(server)
	var connections []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", server.Addr().String())
		if err != nil {
			return err, err
		}
		defer c.Close()
		if err := roundTrip(c); err != nil {
			return err, err
		}
		connections = append(connections, c)
	}
	at := func(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }
	if err := Reset(t.Context(), []Connection{{Local: at(connections[0].RemoteAddr()), Remote: at(connections[0].LocalAddr())}}); err != nil {
		return err, err
	}
	if err := connections[0].SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err, err
	}
	_, ended = connections[0].Read(make([]byte, 1))
	return ended, roundTrip(connections[1])
}

func TestASegmentHasAValidChecksumAndIsReadAgain(t *testing.T) {
	for _, addresses := range [][2]string{{"203.0.113.1:80", "192.0.2.7:40001"}, {"[2001:db8:f::1]:80", "[2001:db8::7]:40001"}} {
		c := Connection{Local: netip.MustParseAddrPort(addresses[0]), Remote: netip.MustParseAddrPort(addresses[1])}
		packet := segmentTo(c, flagRST, 0x12345678)
		segment := packet[len(packet)-tcpHeader:]
		sum := addBytes(addBytes(addBytes(6+tcpHeader, c.Local.Addr().AsSlice()), c.Remote.Addr().AsSlice()), segment)
		require.Zero(t, foldChecksum(sum), "a receiver's sum over segment and pseudo-header (RFC 9293, 3.1)")
		require.Equal(t, []byte{0x12, 0x34, 0x56, 0x78}, segment[4:8])
		read, flags, _, ok := parseSegment(packet)
		require.True(t, ok)
		require.Equal(t, Connection{Local: c.Remote, Remote: c.Local}, read)
		require.Equal(t, byte(flagRST), flags)
	}
}

func TestOnlySegmentsAreRead(t *testing.T) {
	valid := segmentTo(Connection{Local: netip.MustParseAddrPort("203.0.113.1:80"), Remote: netip.MustParseAddrPort("192.0.2.7:1")}, flagACK, 0)
	fragment, datagram := append([]byte(nil), valid...), append([]byte(nil), valid...)
	fragment[7], datagram[9] = 1, unix.IPPROTO_UDP
	for what, packet := range map[string][]byte{"nothing": nil, "a fragment": fragment, "a datagram": datagram, "a cut segment": valid[:len(valid)-1], "another version": append([]byte{0x55}, valid[1:]...)} {
		_, _, _, ok := parseSegment(packet)
		require.False(t, ok, what)
	}
}
