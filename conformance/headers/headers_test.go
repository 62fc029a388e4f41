package headers

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

func at(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

var flow4 = Flow{Mode: model.NAT, Client: at("192.0.2.100:40000"), VIP: at("203.0.113.1:80"), Endpoint: at("198.51.100.11:30080"), Gateway: netip.MustParseAddr("198.51.100.1")}

var flow6 = Flow{Mode: model.Transparent, Client: at("[2001:db8:c::100]:40000"), VIP: at("[2001:db8:f::1]:80"), Endpoint: at("[2001:db8:1::b]:30080"), Gateway: netip.MustParseAddr("2001:db8:1::1")}

// segment returns a packet with a value in each field of IPv4 and TCP.
func segment() Packet {
	return Packet{Source: flow4.Client, Target: flow4.VIP, TrafficClass: 46<<2 | ECT0, TTL: 60, ID: 0x1234, Fragment: DontFragment, Options: []byte{148, 4, 0, 0},
		Protocol: TCP, Sequence: 1e9, Acknowledged: 2e9, Flags: ACK | PSH | URG | ECE | CWR | AE | Reserved, Window: 1000, Urgent: 3,
		TCPOptions: Options(Timestamps(1, 2), SACK(10, 20)), Payload: []byte("hello")}
}

// datagram returns a packet with a value in each field of IPv6 and UDP.
func datagram() Packet {
	return Packet{Source: flow6.Client, Target: flow6.VIP, TrafficClass: 8<<2 | ECT1, TTL: 60, FlowLabel: 0xabcde, Protocol: UDP, Payload: []byte("hello"),
		Extensions: []Extension{NewExtension(HopByHop, []byte{0x1e, 2, 7, 7}), NewExtension(Destination, nil)}}
}

// arrived returns the packet as its path delivers it.
func arrived(p Packet, path Path) Packet {
	p.Source, p.Target = path.Source, path.Target
	if p.Source.Port() == 0 {
		p.Source = netip.AddrPortFrom(p.Source.Addr(), 5000)
	}
	p.TTL -= path.MostHops
	return p
}

func parsed(t *testing.T, b []byte) Packet {
	p, err := Parse(b)
	require.NoError(t, err)
	return p
}

func TestAPacketIsReadAsItIsWritten(t *testing.T) {
	unsummed := datagram()
	unsummed.Unsummed = true
	fragment := segment()
	fragment.Fragment, fragment.Source, fragment.Target = 100, netip.AddrPortFrom(fragment.Source.Addr(), 0), netip.AddrPortFrom(fragment.Target.Addr(), 0)
	fragment.Sequence, fragment.Acknowledged, fragment.Flags, fragment.Window, fragment.Urgent, fragment.TCPOptions = 0, 0, 0, 0, 0, nil
	for _, p := range []Packet{segment(), datagram(), unsummed, fragment, {Source: at("192.0.2.1:1"), Target: at("192.0.2.2:2"), Protocol: UDP, Payload: []byte{}}} {
		require.Equal(t, p, parsed(t, p.Bytes()))
	}
}

func TestTheSumOfAKnownHeaderIsOnes(t *testing.T) {
	header := []byte{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}
	require.Equal(t, uint16(0xffff), sum(header))
}

func TestAWrongChecksumOrLengthIsAFault(t *testing.T) {
	for name, c := range map[string]struct {
		at   int
		p    Packet
		want string
	}{
		"IPv4":     {10, segment(), "the checksum of the IPv4 header is wrong"},
		"TCP":      {24 + 16, segment(), "the checksum of the TCP segment is wrong"},
		"UDP":      {40 + 16 + 6, datagram(), "the checksum of the datagram is wrong"},
		"a length": {40 + 16 + 5, datagram(), "the datagram has 13 bytes, and its header says 12"},
	} {
		b := c.p.Bytes()
		b[c.at] ^= 1
		require.Contains(t, parsed(t, b).Faults, c.want, name)
	}
	b := segment().Bytes()
	require.Contains(t, parsed(t, b[:len(b)-1]).Faults, "the packet has 68 bytes, and its header says 69")
	require.Empty(t, parsed(t, append(b, 0, 0)).Faults, "padding of the frame")
}

// A datagram whose checksum is computed as zero has 0xffff, which is the same number in this arithmetic.
func TestAComputedChecksumOfZeroIsWrittenAsOnes(t *testing.T) {
	path := Path{Source: at("198.51.100.1:5000"), Target: flow4.Endpoint}
	sent := path.Summed(Packet{Source: flow4.Client, Target: flow4.VIP, Protocol: UDP})
	require.NotEqual(t, []byte{0xff, 0xff}, sent.Bytes()[26:28])
	got := sent
	got.Source, got.Target = path.Source, path.Target
	require.Equal(t, []byte{0xff, 0xff}, got.Bytes()[26:28])
	require.Equal(t, got, parsed(t, got.Bytes()))
}

func TestAForwardedPacketHasNoDifferences(t *testing.T) {
	for _, mode := range []model.Forwarding{model.NAT, model.Transparent, model.Direct} {
		for _, c := range []struct {
			flow Flow
			sent Packet
		}{{flow4, segment()}, {flow6, datagram()}} {
			c.flow.Mode = mode
			got := parsed(t, arrived(c.sent, c.flow.Requests()).Bytes())
			require.Empty(t, c.flow.Requests().Differences(c.sent, got), mode)
			require.Empty(t, c.flow.Replies().Differences(c.sent, parsed(t, arrived(c.sent, c.flow.Replies()).Bytes())), mode)
		}
	}
}

func TestTheTTLFallsByOneForEachHop(t *testing.T) {
	direct, remote := flow4, flow4
	direct.Mode, remote.Routers = model.Direct, 1
	for _, c := range []struct {
		path  Path
		fell  uint8
		right bool
	}{
		{flow4.Requests(), 0, false}, {flow4.Requests(), 1, true}, {flow4.Requests(), 2, false}, {flow4.Requests(), 255, false},
		{remote.Requests(), 1, false}, {remote.Requests(), 2, true}, {remote.Replies(), 2, true}, {remote.Replies(), 1, false},
		{direct.Requests(), 0, true}, {direct.Requests(), 1, true}, {direct.Requests(), 2, false},
	} {
		got := arrived(segment(), c.path)
		got.TTL = segment().TTL - c.fell
		require.Equal(t, c.right, len(c.path.Differences(segment(), got)) == 0, "%d hops of %v", c.fell, c.path)
	}
}

// Each field that changes is named, and nothing else.
func TestEachChangedFieldIsADifference(t *testing.T) {
	options := segment().TCPOptions
	for want, c := range map[string]struct {
		sent   Packet
		change func(*Packet)
	}{
		"the source is 198.51.100.2:5000, want 198.51.100.1:0":          {segment(), func(p *Packet) { p.Source = at("198.51.100.2:5000") }},
		"the destination is 198.51.100.11:80, want 198.51.100.11:30080": {segment(), func(p *Packet) { p.Target = at("198.51.100.11:80") }},
		"DSCP 46 became 0":                                   {segment(), func(p *Packet) { p.TrafficClass &= 3 }},
		"ECN 10 became 11":                                   {segment(), func(p *Packet) { p.TrafficClass |= 3 }},
		"the identification 0x1234 became 0x0":               {segment(), func(p *Packet) { p.ID = 0 }},
		"flags and offset of the fragment 0x4000 became 0x0": {segment(), func(p *Packet) { p.Fragment = 0 }},
		"the IPv4 options 94040000 became ":                  {segment(), func(p *Packet) { p.Options = nil }},
		"the flow label 0xabcde became 0x0":                  {datagram(), func(p *Packet) { p.FlowLabel = 0 }},
		"the sequence number 1000000000 became 1":            {segment(), func(p *Packet) { p.Sequence = 1 }},
		"the acknowledgement 2000000000 became 1":            {segment(), func(p *Packet) { p.Acknowledged = 1 }},
		"the flags PSH,ACK,URG,ECE,CWR,AE,reserved 1,reserved 2,reserved 3 became PSH,ACK": {segment(), func(p *Packet) { p.Flags = PSH | ACK }},
		"the window 1000 became 0":                           {segment(), func(p *Packet) { p.Window = 0 }},
		"the urgent pointer 3 became 0":                      {segment(), func(p *Packet) { p.Urgent = 0 }},
		"the TCP option timestamps 0000000100000002 is gone": {segment(), func(p *Packet) { p.TCPOptions = Options(SACK(10, 20)) }},
		"the TCP option MSS 0218 is new":                     {segment(), func(p *Packet) { p.TCPOptions = append(Options(MSS(536)), options...) }},
		"order or padding of the TCP options changed: 080a0000000100000002050a0000000a00000014 became 050a0000000a00000014080a0000000100000002": {
			segment(), func(p *Packet) { p.TCPOptions = Options(SACK(10, 20), Timestamps(1, 2)) }},
		"the datagram lost its checksum":           {datagram(), func(p *Packet) { p.Unsummed = true }},
		"5 bytes of payload became 4 other ones":   {datagram(), func(p *Packet) { p.Payload = []byte("hell") }},
		"the checksum of the TCP segment is wrong": {segment(), func(p *Packet) { p.Faults = []string{"the checksum of the TCP segment is wrong"} }},
		"TTL 60 became 60, want 1 hops":            {segment(), func(p *Packet) { p.TTL++ }},
		"the protocol 17 became 6":                 {datagram(), func(p *Packet) { p.Protocol = TCP }},
	} {
		flow := flow4
		if !c.sent.Is4() {
			flow = flow6
		}
		got := arrived(c.sent, flow.Requests())
		c.change(&got)
		require.Equal(t, []string{want}, flow.Requests().Differences(c.sent, got))
	}
	got := arrived(datagram(), flow6.Requests())
	got.Extensions = nil
	require.Len(t, flow6.Requests().Differences(datagram(), got), 1, "the extension headers are gone")
}

func TestADatagramWithoutChecksumMayGetOne(t *testing.T) {
	sent := datagram()
	sent.Unsummed = true
	got := arrived(sent, flow6.Requests())
	require.Empty(t, flow6.Requests().Differences(sent, got))
	got.Unsummed = false
	require.Empty(t, flow6.Requests().Differences(sent, got))
}

func TestPacketsMatchInAnyOrder(t *testing.T) {
	var sent, got []Packet
	for i := range 10 {
		p := segment()
		p.Sequence = uint32(i)
		sent, got = append(sent, p), append([]Packet{arrived(p, flow4.Requests())}, got...)
	}
	path := func(Packet) Path { return flow4.Requests() }
	require.True(t, Match(sent, got, path).IsClean())

	changed := got[9]
	changed.Window = 1
	outcome := Match(sent, append(got[2:9:9], changed, got[5]), path)
	require.Equal(t, 2, outcome.Lost)
	require.Equal(t, 1, outcome.Changed)
	require.Equal(t, 1, outcome.Extra, "a duplicate")
	require.Len(t, outcome.Examples, 4)
}

func TestOptionsAreReadAsTheyAreWritten(t *testing.T) {
	options := []Option{MSS(1460), {KindSACKPermitted, []byte{}}, Timestamps(1, 2), WindowScale(7), FastOpen(1, 2, 3, 4), SACK(1, 2, 3, 4)}
	require.Equal(t, options, ParseOptions(Options(options...)))
	require.Equal(t, []Option{{Kind: 2}}, ParseOptions([]byte{2, 4, 1}), "an option that is longer than the header")
	require.Equal(t, []Option{{Kind: 2}}, ParseOptions([]byte{2, 1, 1, 1}), "an option that is shorter than its length field")
	mss, there := Packet{TCPOptions: Options(MSS(1460))}.Option(KindMSS)
	require.True(t, there)
	require.Equal(t, uint16(1460), binary.BigEndian.Uint16(mss.Data))
}

func FuzzPacket(f *testing.F) {
	f.Add(segment().Bytes())
	f.Add(datagram().Bytes())
	f.Fuzz(func(_ *testing.T, b []byte) {
		if p, err := Parse(b); err == nil {
			_ = p.String()
			_ = ParseOptions(p.TCPOptions)
		}
	})
}
