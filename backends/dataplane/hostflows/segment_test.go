package hostflows

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestASegmentHasAValidChecksumAndIsReadAgain(t *testing.T) {
	for _, addresses := range [][2]string{{"203.0.113.1:80", "192.0.2.7:40001"}, {"[2001:db8:f::1]:80", "[2001:db8::7]:40001"}} {
		c := Connection{Local: netip.MustParseAddrPort(addresses[0]), Remote: netip.MustParseAddrPort(addresses[1])}
		packet := Segment(c, flagRST, 0x12345678)
		segment := packet[len(packet)-tcpHeader:]
		sum := addBytes(addBytes(addBytes(6+tcpHeader, c.Local.Addr().AsSlice()), c.Remote.Addr().AsSlice()), segment)
		require.Zero(t, foldChecksum(sum), "a receiver's sum over segment and pseudo-header (RFC 9293, 3.1)")
		require.Equal(t, []byte{0, 80, 0x9c, 0x41}, segment[:4])
		require.Equal(t, []byte{0x12, 0x34, 0x56, 0x78}, segment[4:8])
		read, flags, _, ok := parseSegment(packet)
		require.True(t, ok)
		require.Equal(t, Connection{Local: c.Remote, Remote: c.Local}, read)
		require.Equal(t, byte(flagRST), flags)
	}
}

func TestOnlySegmentsAreRead(t *testing.T) {
	valid := Segment(Connection{Local: netip.MustParseAddrPort("203.0.113.1:80"), Remote: netip.MustParseAddrPort("192.0.2.7:1")}, ACK, 0)
	fragment, datagram := append([]byte(nil), valid...), append([]byte(nil), valid...)
	fragment[7], datagram[9] = 1, unix.IPPROTO_UDP
	for what, packet := range map[string][]byte{"nothing": nil, "a fragment": fragment, "a datagram": datagram, "a cut segment": valid[:len(valid)-1], "another version": append([]byte{0x55}, valid[1:]...)} {
		_, _, _, ok := parseSegment(packet)
		require.False(t, ok, what)
	}
}
