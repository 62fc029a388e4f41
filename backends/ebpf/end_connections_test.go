package ebpf

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnACKHasAValidChecksum(t *testing.T) {
	for _, addresses := range [][2]string{{"203.0.113.1:80", "192.0.2.7:40001"}, {"[2001:db8:f::1]:80", "[2001:db8::7]:40001"}} {
		from, to := netip.MustParseAddrPort(addresses[0]), netip.MustParseAddrPort(addresses[1])
		packet := ackPacket(from, to)
		segment := packet[len(packet)-tcpHeader:]
		sum := addBytes(addBytes(addBytes(6+tcpHeader, from.Addr().AsSlice()), to.Addr().AsSlice()), segment)
		require.Zero(t, foldChecksum(sum), "a receiver's sum over segment and pseudo-header (RFC 9293, 3.1)")
		require.Equal(t, []byte{0, 80, 0x9c, 0x41}, segment[:4])
	}
}
