package headers

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Flow is a flow that a gateway forwards packet by packet.
type Flow struct {
	Mode model.Forwarding
	// Client and VIP are the ends as the client sees them, with the port of the frontend.
	Client, VIP netip.AddrPort
	// Endpoint is the endpoint's address with the target port, Gateway the gateway's address towards it.
	Endpoint netip.AddrPort
	Gateway  netip.Addr
	// Routers is the number of routers between the client and the gateway. Between the client and a node there is at least one.
	Routers uint8
}

// Path is what the receiver of packets of one direction of a flow must see.
type Path struct {
	// Source and Target are the addresses and ports. A port of 0 may be any port.
	Source, Target netip.AddrPort
	// FewestHops and MostHops bound by how much the TTL falls.
	FewestHops, MostHops uint8
}

// Requests returns the path of the client's packets. The gateway is a hop. It is none if it only changes Ethernet addresses, which mode direct
// allows.
func (f Flow) Requests() Path {
	hops := f.Routers + 1
	switch f.Mode {
	case model.Direct:
		return Path{f.Client, f.VIP, hops - 1, hops}
	case model.Transparent:
		return Path{f.Client, f.Endpoint, hops, hops}
	}
	return Path{netip.AddrPortFrom(f.Gateway, 0), f.Endpoint, hops, hops}
}

// Replies returns the path of the endpoint's packets. In mode direct they pass the router, or the gateway if it is the nodes' router.
func (f Flow) Replies() Path {
	hops := f.Routers + 1
	if f.Mode == model.Direct {
		hops = 1
	}
	return Path{f.VIP, f.Client, hops, hops}
}

// Summed returns the datagram with a payload of two bytes for which the receiver's checksum is computed as zero, so that it has to be written as
// ones: zero would mean that the datagram has no checksum (RFC 768). The path has no open port.
func (p Path) Summed(sent Packet) Packet {
	got := sent
	got.Source, got.Target, got.Payload = p.Source, p.Target, []byte{0, 0}
	sent.Payload = clone(got.transport()[6:8])
	return sent
}

// Differences compares a packet as it was sent with the packet that arrived. It returns a sentence for each field that is not as
// the path allows: addresses, ports and the TTL change, and so do the checksums, which must be valid; all else is unchanged.
func (p Path) Differences(sent, got Packet) []string {
	d := differences{}
	d.add(got.Faults...)
	d.endpoints(p, got)
	d.hops(p, sent, got)
	d.network(sent, got)
	if sent.Protocol == TCP && got.Protocol == TCP {
		d.tcp(sent, got)
	}
	if sent.Protocol == UDP && got.Unsummed != sent.Unsummed {
		// A gateway may add a checksum. It must not remove one, because nobody then notices what spoils the datagram later.
		d.unless(sent.Unsummed, "the datagram lost its checksum")
	}
	d.unless(bytes.Equal(sent.Payload, got.Payload), "%d bytes of payload became %d other ones", len(sent.Payload), len(got.Payload))
	return d.found
}

// differences collects sentences.
type differences struct{ found []string }

func (d *differences) add(sentences ...string) { d.found = append(d.found, sentences...) }

func (d *differences) unless(ok bool, format string, args ...any) {
	if !ok {
		d.add(fmt.Sprintf(format, args...))
	}
}

// equal compares a field, with the verb by which both values are printed.
func equal[T comparable](d *differences, field, verb string, sent, got T) {
	d.unless(sent == got, "%s "+verb+" became "+verb, field, sent, got)
}

func (d *differences) endpoints(p Path, got Packet) {
	d.unless(matches(p.Source, got.Source), "the source is %s, want %s", got.Source, p.Source)
	d.unless(matches(p.Target, got.Target), "the destination is %s, want %s", got.Target, p.Target)
}

func matches(want, got netip.AddrPort) bool {
	return got.Addr() == want.Addr() && (want.Port() == 0 && got.Port() != 0 || want.Port() == got.Port())
}

func (d *differences) hops(p Path, sent, got Packet) {
	fell := int(sent.TTL) - int(got.TTL)
	d.unless(fell >= int(p.FewestHops) && fell <= int(p.MostHops), "TTL %d became %d, want %d hops", sent.TTL, got.TTL, p.MostHops)
}

func (d *differences) network(sent, got Packet) {
	equal(d, "DSCP", "%d", sent.TrafficClass>>2, got.TrafficClass>>2)
	equal(d, "ECN", "%02b", sent.TrafficClass&ecnBits, got.TrafficClass&ecnBits)
	equal(d, "the identification", "%#x", sent.ID, got.ID)
	equal(d, "flags and offset of the fragment", "%#x", sent.Fragment, got.Fragment)
	equal(d, "the IPv4 options", "%x", string(sent.Options), string(got.Options))
	equal(d, "the flow label", "%#x", sent.FlowLabel, got.FlowLabel)
	equal(d, "the extension headers", "%s", fmt.Sprintf("%x", sent.Extensions), fmt.Sprintf("%x", got.Extensions))
	equal(d, "the protocol", "%d", sent.Protocol, got.Protocol)
}

func (d *differences) tcp(sent, got Packet) {
	equal(d, "the sequence number", "%d", sent.Sequence, got.Sequence)
	equal(d, "the acknowledgement", "%d", sent.Acknowledged, got.Acknowledged)
	equal(d, "the flags", "%s", flagsText(sent.Flags), flagsText(got.Flags))
	equal(d, "the window", "%d", sent.Window, got.Window)
	equal(d, "the urgent pointer", "%d", sent.Urgent, got.Urgent)
	if bytes.Equal(sent.TCPOptions, got.TCPOptions) {
		return
	}
	before, after, known := ParseOptions(sent.TCPOptions), ParseOptions(got.TCPOptions), len(d.found)
	for _, o := range before {
		d.unless(has(after, o), "the TCP option %s is gone", o)
	}
	for _, o := range after {
		d.unless(has(before, o), "the TCP option %s is new", o)
	}
	d.unless(len(d.found) > known, "order or padding of the TCP options changed: %x became %x", sent.TCPOptions, got.TCPOptions)
}

func has(options []Option, o Option) bool {
	return slices.ContainsFunc(options, func(other Option) bool { return o.Kind == other.Kind && bytes.Equal(o.Data, other.Data) })
}
