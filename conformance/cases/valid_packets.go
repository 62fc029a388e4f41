package cases

import (
	"encoding/binary"
	"net"

	"kubelb.k8c.io/conformance/headers"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func validPackets() Case {
	return Case{
		Name:  "valid-packets",
		Shows: "packets of forwarders and proxies have valid checksums, enough TTL and no mark of congestion; connections negotiate segment size, window scaling, selective acknowledgements, timestamps, and ECN if the client asks for it; a datagram without checksum is served",
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("one", 1)}, c.Frontend(model.TCP, 1, 80, 30080, "one"), c.Frontend(model.UDP, 1, 80, 30080, "one"))
			// Client and nodes ask for ECN. Segments of such connections can be marked, and others cannot.
			c.NoError(c.Lab.A.Sysctl("net/ipv4/tcp_ecn", "1"))
			c.NoError(c.Lab.Nodes[1].Sysctl("net/ipv4/tcp_ecn", "1"))
			// The first packets may be late, while hosts look for their neighbours. A second SYN asks for less (net.ipv4.tcp_ecn_fallback).
			c.Request(1, "tcp", c.At(1, 80))
			w := c.watchFlows(model.NAT, c.At(1, 80))
			c.Request(20, "tcp", c.At(1, 80))
			c.NoError(c.Lab.A.EchoInRounds(c.At(1, 80), 5, 20))
			c.NoError(c.Lab.A.TransferInWindow(c.At(1, 80), 1<<20, lossWindow))
			c.requireUnsummedServed()
			atClient, _, err := w.client.Close()
			c.NoError(err)
			atNode, _, err := w.node.Close()
			c.NoError(err)
			c.requireValid("the client", atClient)
			c.requireValid("the node", atNode)
			c.Equal(21+1, c.requireNegotiated("the client", atClient, headers.SYN|headers.ACK), "answered connections")
			c.Positive(c.requireNegotiated("the node", atNode, headers.SYN), "connections to the node")
		},
	}
}

// requireUnsummedServed requires that datagrams without a checksum, which IPv4 allows, get answers.
func (c *C) requireUnsummedServed() {
	if !c.V4 {
		return
	}
	var flow net.Conn
	flow, err := c.Lab.A.DialUnsummed(c.At(1, 80))
	c.NoError(err)
	c.Cleanup(func() { flow.Close() })
	for range 3 {
		_, err = lab.RequestAddresses(flow, c.Patience)
		c.NoError(err, "a datagram without a checksum")
	}
}

// leastTTL is the least TTL of a packet that has to cross the Internet after the gateway (RFC 1812 says that its diameter may be 32 hops).
const leastTTL = 32

// requireValid requires that each packet is one that no host or router has a reason to drop.
func (c *C) requireValid(where string, packets []headers.Packet) {
	for _, p := range packets {
		c.Empty(p.Faults, "%s got %s", where, p)
		c.GreaterOrEqual(p.TTL, uint8(leastTTL), "%s got %s", where, p)
		c.NotEqual(uint8(headers.CongestionExperienced), p.TrafficClass&3, "%s got %s, with a mark of congestion", where, p)
		c.LessOrEqual(len(p.Bytes()), 1500, "%s got %s", where, p)
	}
}

// requireNegotiated requires that segments with these flags offer or accept what makes a connection fast. It returns how many there are,
// without those that are sent again.
func (c *C) requireNegotiated(where string, packets []headers.Packet, flags uint16) int {
	seen := map[uint32]bool{}
	for _, p := range packets {
		if p.Protocol != headers.TCP || p.Flags&(headers.SYN|headers.ACK) != flags {
			continue
		}
		seen[p.Sequence] = true
		for _, kind := range []uint8{headers.KindMSS, headers.KindWindowScale, headers.KindSACKPermitted, headers.KindTimestamps} {
			_, there := p.Option(kind)
			c.True(there, "%s got %s without the TCP option %s", where, p, headers.Option{Kind: kind})
		}
		size, _ := p.Option(headers.KindMSS)
		c.GreaterOrEqual(binary.BigEndian.Uint16(size.Data), uint16(536), "%s got %s: maximum segment size", where, p)
		c.LessOrEqual(binary.BigEndian.Uint16(size.Data), uint16(mtuPayload(c.V4)-12), "%s got %s: maximum segment size", where, p)
		// A proxy's host need not ask for ECN itself, but accepts it (net.ipv4.tcp_ecn).
		c.True(p.Flags&headers.ECE != 0 || flags&headers.ACK == 0, "%s got %s, which does not accept ECN", where, p)
	}
	return len(seen)
}
