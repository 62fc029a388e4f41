package watchdog

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	client4, client6 = netip.MustParseAddr("192.0.0.6"), netip.MustParseAddr("fd4b:7562:654c::6")
	vip4, vip6       = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	nearMAC          = net.HardwareAddr{2, 0, 0, 0, 0, 1}
)

func flows() []flow {
	return []flow{{netip.AddrPortFrom(client4, 20001), netip.AddrPortFrom(vip4, 80)}, {netip.AddrPortFrom(client6, 20001), netip.AddrPortFrom(vip6, 80)}}
}

// reversed is the frame with source and destination exchanged, as an answer has them.
func reversed(f flow, flags byte, seq uint32) []byte {
	return tcpSegment{flow: flow{f.frontend, f.client}, seq: seq, flags: flags}.frame(nearMAC, clientMAC)
}

func TestAnAnswerIsParsed(t *testing.T) {
	for _, f := range flows() {
		a, ok := parseAnswer(reversed(f, flagSYN|flagACK, 7))
		require.True(t, ok, f)
		require.Equal(t, answer{flow: f, seq: 7, flags: flagSYN | flagACK}, a)
	}
}

func TestAnICMPErrorIsParsedAsAnAnswerToItsTry(t *testing.T) {
	router := netip.MustParseAddr("198.51.100.1")
	syn := tcpSegment{flow: flows()[0], seq: 9, flags: flagSYN}.frame(clientMAC, nearMAC)
	about := syn[ethernetHeader : ethernetHeader+ipv4Header+tcpBeginning]
	icmp := func(kind, code byte) []byte {
		frame := tcpSegment{flow: flow{netip.AddrPortFrom(router, 0), flows()[0].client}}.frame(nearMAC, clientMAC)[:ethernetHeader+ipv4Header]
		frame[ethernetHeader+3] = byte(ipv4Header + icmpHeader + len(about))
		frame[ethernetHeader+9] = protocolICMP
		return append(append(frame, kind, code, 0, 0, 0, 0, 0, 0), about...)
	}
	a, ok := parseAnswer(icmp(icmpUnreachable, 13))
	require.True(t, ok)
	require.Equal(t, answer{flow: flows()[0], seq: 9, unreachable: true}, a)
	a, ok = parseAnswer(icmp(icmpUnreachable, icmpNoPort))
	require.True(t, ok && a.noPort, "nodes send it for a Service without a ready pod")
	_, ok = parseAnswer(icmp(icmpUnreachable, icmpFragmentation))
	require.False(t, ok, "not an error for a packet that was too big")
	_, ok = parseAnswer(icmp(0, 0))
	require.False(t, ok, "not an echo reply")
}

// FuzzAnswer: endpoints may send the client whatever they like.
func FuzzAnswer(f *testing.F) {
	for _, flow := range flows() {
		f.Add(reversed(flow, flagSYN|flagACK, 1))
		f.Add(reversed(flow, flagRST, 1)[:ethernetHeader+ipv4Header+3])
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		a, ok := parseAnswer(frame)
		if ok && (!a.client.IsValid() || !a.frontend.IsValid()) {
			t.Errorf("%x is an answer of %v", frame, a)
		}
	})
}
