package cases

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func icmpStrays() Case {
	return Case{
		Name:  "icmp-strays",
		Shows: "ICMP errors about unknown flows, or with forged content, reach nobody; none ends a connection or moves a UDP flow, also if it names a known flow",
		Run: func(c *C) {
			frontends := c.inEachMode("all")
			// The frontend's address is for errors to another address than that of the flow.
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, append(frontends, c.Frontend(model.TCP, otherVIP, 80, 30080, "all"))...)
			var flows []observed
			for i, f := range frontends {
				flows = append(flows, c.observe(f, c.Lab.A, lab.From{Port: 20000 + uint16(i)}, wholePayload))
			}
			arrivals := c.receiveICMPErrors()
			for _, f := range flows {
				c.NoError(c.Lab.A.SendICMPErrors(c.strays(f.answer.received)...))
				if f.request.mode == model.NAT {
					// In the other modes the gateway forwards errors to clients like any other packet. The node itself would drop an error with a
					// wrong checksum.
					c.NoError(c.Lab.Router.SendICMPErrors(c.strays(f.request.received)...))
				}
			}
			c.requireContinue(flows)
			for host, received := range arrivals {
				for _, e := range received.Close() {
					// Whoever gets a message with a wrong checksum drops it.
					c.NotEmpty(e.Invalid, "%s got %s", host.Name, e)
				}
			}
			for _, f := range flows {
				c.NoError(c.Lab.A.SendICMPErrors(c.forgeries(f.answer.received)...))
				c.NoError(f.node.SendICMPErrors(c.forgeries(f.request.received)...))
				c.requireContinue(flows)
			}
			for _, f := range frontends {
				if f.Protocol == model.TCP {
					c.NoError(c.Lab.A.Transfer(netip.AddrPortFrom(f.VIP, f.Port), 100<<10), "after a forged MTU")
				}
			}
		},
	}
}

// otherVIP is the number of an external address that no flow of icmp-strays has.
const otherVIP = 9

// requireContinue requires that connections continue, and that UDP flows continue with their endpoint.
func (c *C) requireContinue(flows []observed) {
	for _, f := range flows {
		if f.stream != nil {
			c.NoError(f.stream.Alive(), "a connection in mode %s", f.request.mode)
			continue
		}
		answer, err := lab.RequestAddressesAgain(f.datagrams, c.Patience)
		c.NoError(err, "a UDP flow in mode %s", f.request.mode)
		c.Equal(f.node, c.Lab.Nodes[c.Number(answer.Endpoint)%lab.Nodes], "a UDP flow in mode %s moved to another endpoint", f.request.mode)
	}
}

// strays returns ICMP errors that must reach nobody, to the sender of a packet of a known flow.
func (c *C) strays(packet lab.Packet) []lab.ICMPError {
	header, protocol := 40, 6 // the length of the header, and the place of the protocol in it
	if c.V4 {
		header, protocol = 20, 9
	}
	ports := func(source, target uint16) func([]byte) {
		return func(b []byte) {
			if source != 0 {
				binary.BigEndian.PutUint16(b[header:], source)
			}
			if target != 0 {
				binary.BigEndian.PutUint16(b[header+2:], target)
			}
		}
	}
	quotations := [][]byte{
		c.quote(packet, ports(0, 1)), c.quote(packet, ports(81, 0)), c.quote(packet, ports(81, 1)),
		c.quote(packet, func(b []byte) { b[protocol] = unix.IPPROTO_SCTP }),
		c.quote(packet, func(b []byte) { b[protocol], b[header] = packetICMP(c.V4), 3 }), // an error about an error
		c.quote(packet, c.laterFragment),
		{}, packet.Bytes[:4], packet.Bytes[:header], packet.Bytes[:header+3],
	}
	to := packet.Source.Addr()
	from := packet.Target.Addr()
	var out []lab.ICMPError
	for _, kind := range []lab.ICMPErrorKind{lab.PortUnreachable(c.V4), lab.TooBig(c.V4, 1300)} {
		for _, quoted := range quotations {
			out = append(out, lab.ICMPError{ICMPErrorKind: kind, From: from, To: to, Quoted: quoted})
		}
		out = append(out, lab.ICMPError{ICMPErrorKind: kind, From: from, To: to, Quoted: packet.Bytes, Invalid: "the ICMP checksum"})
		if to != c.Gateway.Address(c.V4) {
			out = append(out, lab.ICMPError{ICMPErrorKind: kind, From: from, To: c.VIP(otherVIP), Quoted: packet.Bytes})
		}
	}
	if c.V4 {
		// A redirect is for the next hop only (RFC 1812, 5.2.7.2).
		gateway := binary.BigEndian.Uint32(c.Lab.Router.IPv4.AsSlice())
		out = append(out, lab.ICMPError{ICMPErrorKind: lab.ICMPErrorKind{Type: 5, Code: 1, Second: gateway}, From: from, To: to, Quoted: packet.Bytes})
	}
	return out
}

func packetICMP(v4 bool) byte {
	if v4 {
		return lab.ICMP
	}
	return lab.ICMPv6
}

// quote returns a copy of the packet with a change and a valid header.
func (c *C) quote(packet lab.Packet, change func([]byte)) []byte {
	out := append([]byte{}, packet.Bytes...)
	change(out)
	if c.V4 {
		lab.SetIPv4Checksum(out)
	}
	return out
}

// laterFragment makes a packet a later fragment, which has no ports.
func (c *C) laterFragment(b []byte) {
	if c.V4 {
		binary.BigEndian.PutUint16(b[6:], 100)
		return
	}
	copy(b[40:], []byte{b[6], 0, 3, 0x20, 0, 0, 0, 1})
	b[6] = unix.IPPROTO_FRAGMENT
}

// forgeries returns ICMP errors about a known flow from somebody who does not know its sequence numbers, and with senseless MTUs. They may
// reach the sender of the packet.
func (c *C) forgeries(packet lab.Packet) []lab.ICMPError {
	header := 40
	if c.V4 {
		header = 20
	}
	var out []lab.ICMPError
	forge := func(kind lab.ICMPErrorKind, quoted []byte) {
		out = append(out, lab.ICMPError{ICMPErrorKind: kind, From: packet.Target.Addr(), To: packet.Source.Addr(), Quoted: quoted})
	}
	elsewhere := packet.Bytes
	if packet.Protocol == lab.TCP {
		elsewhere = c.quote(packet, func(b []byte) { b[header+4] ^= 0x40 }) // a sequence number far away
	}
	for _, kind := range lab.ICMPErrorKinds(c.V4) {
		forge(kind, elsewhere)
	}
	forge(lab.PortUnreachable(c.V4), c.quote(packet, func(b []byte) { b[0] ^= 0x10 })) // of another version of IP
	for _, mtu := range []uint32{0, 1, 68, 296, 1279, 65535, 1 << 31} {
		forge(lab.TooBig(c.V4, mtu), packet.Bytes)
	}
	return out
}
