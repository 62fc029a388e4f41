package cases

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func icmpErrors() Case {
	return Case{
		Name:  "icmp-errors",
		Shows: "an ICMP error of any kind about a packet of a flow, from a node, a router or a client, reaches the sender of that packet, and nobody else, with the packet as its sender sent it",
		Needs: []dataplane.Feature{dataplane.Refusal, dataplane.PathMTU},
		Run: func(c *C) {
			frontends := c.inEachMode("all")
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends...)
			nodesRouter, err := c.Lab.NodesRouter()
			c.NoError(err)
			arrivals := c.receiveICMPErrors()
			for _, f := range frontends {
				seen := []observed{c.observe(f, c.Lab.B, lab.From{}, wholePayload)}
				if f.Protocol == model.UDP {
					seen = append(seen, c.observe(f, c.Lab.B, lab.From{}, fragmentedPayload))
				}
				for _, flow := range seen {
					c.requireAllPass(arrivals, flow, nodesRouter)
				}
			}
			c.Apply([]model.Pool{c.Pool("all", 2)}, frontends...)
			for _, f := range frontends {
				if f.Forwarding == model.NAT {
					// Another client has a flow from the same port, so that this one gets another port towards the endpoint.
					same := lab.From{Port: 23000}
					c.observe(f, c.Lab.A, same, wholePayload)
					c.requireAllPass(arrivals, c.observe(f, c.Lab.B, same, wholePayload), nodesRouter)
				}
				c.requireFails(arrivals, f, c.Lab.Nodes[2], nodesRouter)
			}
			for host, rest := range arrivals {
				c.Empty(rest.Close(), "ICMP errors that %s got in addition", host.Name)
			}
		},
	}
}

// Lengths of payloads: one fills most of a packet, the other one needs fragments.
const wholePayload, fragmentedPayload = 640, 3000

// requireAllPass requires that errors of all kinds about both packets of a flow, from each side, reach the senders of the packets.
func (c *C) requireAllPass(arrivals map[*lab.Host]*lab.ICMPErrors, flow observed, nodesRouter *lab.Host) {
	for _, from := range []*lab.Host{flow.node, nodesRouter} {
		c.requirePassed(arrivals[flow.request.sender], flow.request, from)
	}
	for _, from := range []*lab.Host{c.Lab.B, c.Lab.Router} {
		c.requirePassed(arrivals[flow.answer.sender], flow.answer, from)
	}
}

// quotedLength is how many bytes of a packet the i-th error quotes: the IP header with 8 bytes (RFC 792), or as many as an error may have
// (RFC 1812, 4.3.2.3, and RFC 4443, 2.4).
func quotedLength(v4 bool, i int) int {
	switch {
	case v4 && i%2 == 0:
		return 20 + 8
	case v4:
		return 576 - 20 - 8
	case i%2 == 0:
		return 40 + 8 + 8 // there may be a fragment header
	}
	return 1280 - 40 - 8
}

// passed is a packet on both sides of the gateway.
type passed struct {
	mode model.Forwarding
	// sender is the host that sent the packet.
	sender         *lab.Host
	sent, received lab.Packet
	// answer means that an endpoint sent the packet.
	answer bool
}

// observed is a flow.
type observed struct {
	node            *lab.Host
	request, answer passed
	// stream is set for TCP, datagrams for UDP.
	stream    *lab.Stream
	datagrams net.Conn
}

// observe makes a flow with a payload of that length, and returns a packet of each direction, or the first fragment of one.
func (c *C) observe(f model.Frontend, client *lab.Host, from lab.From, length int) observed {
	payload := append([]byte(fmt.Sprintf("%s %d", f.FrontendKey, length)), make([]byte, length)...)[:length]
	has := func(p lab.Packet) bool { return bytes.Contains(p.Bytes, payload[:100]) } // the first fragment
	captures := map[*lab.Host]*lab.Capture{}
	for _, h := range append([]*lab.Host{client}, c.Lab.Nodes[:]...) {
		capture, err := h.Capture(has)
		c.NoError(err)
		captures[h] = capture
	}
	seen := observed{}
	seen.exchange(c, f, client, from, payload)
	var each sync.Mutex
	var all sync.WaitGroup
	for h, capture := range captures {
		all.Go(func() {
			packets := capture.Close()
			each.Lock()
			defer each.Unlock()
			for _, p := range packets {
				seen.add(h, p, h == client)
			}
		})
	}
	all.Wait()
	c.NotNil(seen.node, "no node got the payload")
	seen.request.mode, seen.answer.mode = f.Forwarding, f.Forwarding
	seen.request.sender, seen.answer.sender, seen.answer.answer = client, seen.node, true
	return seen
}

// add records a packet that a host has sent or received.
func (o *observed) add(at *lab.Host, p lab.Packet, client bool) {
	if !client {
		o.node = at
	}
	switch {
	case client && p.Out:
		o.request.sent = p
	case client:
		o.answer.received = p
	case p.Out:
		o.answer.sent = p
	default:
		o.request.received = p
	}
}

// exchange opens the flow, sends the payload and waits for it to come back. The flow stays open.
func (o *observed) exchange(c *C, f model.Frontend, client *lab.Host, from lab.From, payload []byte) {
	to := netip.AddrPortFrom(f.VIP, f.Port)
	var err error
	var conn net.Conn
	if f.Protocol == model.TCP {
		o.stream, err = client.Stream(to, from)
		c.NoError(err)
		conn = o.stream.Conn
	} else {
		o.datagrams, err = client.Dial("udp", to, from)
		c.NoError(err)
		conn = o.datagrams
	}
	c.Cleanup(func() { conn.Close() })
	c.NoError(conn.SetDeadline(time.Now().Add(c.Patience.For(4 * time.Second))))
	_, err = conn.Write(payload)
	c.NoError(err)
	_, err = io.ReadFull(conn, make([]byte, len(payload)))
	c.NoError(err)
}

// receiveICMPErrors collects the ICMP errors that clients and nodes receive.
func (c *C) receiveICMPErrors() map[*lab.Host]*lab.ICMPErrors {
	arrivals := map[*lab.Host]*lab.ICMPErrors{}
	for _, h := range append([]*lab.Host{c.Lab.A, c.Lab.B}, c.Lab.Nodes[:]...) {
		received, err := h.ReceiveICMPErrors()
		c.NoError(err)
		arrivals[h] = received
	}
	return arrivals
}

// requirePassed sends ICMP errors of all kinds about the packet that was received, and requires that the sender of the packet gets them.
func (c *C) requirePassed(arrivals *lab.ICMPErrors, p passed, from *lab.Host) {
	var messages []lab.ICMPError
	for i, kind := range lab.ICMPErrorKinds(c.V4) {
		length, extension := kind.Extension()
		if extension == nil {
			length = min(quotedLength(c.V4, i), len(p.received.Bytes))
		}
		quoted := append(bytes.Clone(p.received.Bytes[:length]), extension...)
		messages = append(messages, lab.ICMPError{ICMPErrorKind: kind, From: from.Address(c.V4), To: p.received.Source.Addr(), Quoted: quoted})
	}
	c.NoError(from.SendICMPErrors(messages...))
	got := map[lab.ICMPErrorKind]lab.ICMPError{}
	for range messages {
		e, ok := arrivals.Next(c.Patience.For(time.Second))
		if !ok {
			break
		}
		got[e.ICMPErrorKind] = e
	}
	for _, sent := range messages {
		about := fmt.Sprintf("mode %s, protocol %d, %s sent %s", p.mode, p.sent.Protocol, from.Name, sent)
		e, ok := got[sent.ICMPErrorKind]
		c.True(ok, "%s: it did not reach %s unchanged, which got %v", about, p.sender.Name, slices.Collect(maps.Values(got)))
		c.requireAbout(p, sent, e, fmt.Sprintf("%s, %s arrived", about, e))
	}
}

// requireAbout requires that the message that arrived is about the packet as its sender sent it.
func (c *C) requireAbout(p passed, sent, got lab.ICMPError, what string) {
	c.Empty(got.Invalid, what)
	c.Equal(p.sent.Source.Addr(), got.To, what)
	c.Equal(len(sent.Quoted), len(got.Quoted), "%s: the quotation has another length", what)
	_, extension := sent.Extension()
	want := append(bytes.Clone(p.sent.Bytes[:len(sent.Quoted)-len(extension)]), extension...)
	c.Equal(c.comparable(want), c.comparable(got.Quoted), "%s, which quotes another packet than %s sent", what, p.sender.Name)
	if p.mode == model.NAT && !p.answer {
		// RFC 5508, REQ-5: an internal address does not become visible.
		c.Contains([]netip.Addr{p.sent.Target.Addr(), c.Lab.GatewayAddress(c.V4, 0)}, got.From, what)
	}
}

// comparable returns the beginning of a packet without what errors may change in their quotation: the fields that each router changes, which
// are TTL or hop limit with the checksum of the IPv4 header; the number of a fragment, which a router that reassembles it changes; and the
// checksum of TCP or UDP, which nobody validates because most errors do not quote the whole packet (RFC 5508, REQ-3).
func (c *C) comparable(packet []byte) []byte {
	out := bytes.Clone(packet)
	var protocol byte
	at := 20
	if c.V4 {
		out[8], out[10], out[11] = 0, 0, 0
		protocol = out[9]
	} else {
		out[7] = 0
		protocol, at = out[6], 40
		if protocol == unix.IPPROTO_FRAGMENT {
			copy(out[at+4:], make([]byte, 4))
			protocol, at = out[at], at+8
		}
	}
	at += 6
	if protocol == lab.TCP {
		at += 10
	}
	if len(out) >= at+2 {
		out[at], out[at+1] = 0, 0
	}
	return out
}

// requireFails requires that a client learns at once that its first packet did not arrive: the endpoint gets it, but a router reports that it
// could not be delivered.
func (c *C) requireFails(arrivals map[*lab.Host]*lab.ICMPErrors, f model.Frontend, node, router *lab.Host) {
	what := fmt.Sprintf("%s in mode %s", f.FrontendKey, f.Forwarding)
	network, kind, want := "tcp", lab.HostUnreachable(c.V4), error(unix.EHOSTUNREACH)
	if f.Protocol == model.UDP {
		network, kind, want = "udp", lab.PortUnreachable(c.V4), unix.ECONNREFUSED
	}
	to := netip.AddrPortFrom(f.VIP, f.Port)
	// The gateway has to know the MAC address of the endpoint.
	_, err := c.Lab.A.Request(network, to, lab.From{})
	c.NoError(err, what)
	c.NoError(node.DropIncoming(true))
	defer func() { c.NoError(node.DropIncoming(false)) }()
	first := make(chan lab.Packet, 100)
	capture, err := node.Capture(func(p lab.Packet) bool {
		if !p.Out && (p.IsSYN() || p.Protocol == lab.UDP && f.Protocol == model.UDP) { // the last packets of former flows may still arrive
			p.Bytes = bytes.Clone(p.Bytes)
			first <- p
		}
		return false
	})
	c.NoError(err)
	defer capture.Close()
	failed := make(chan error, 1)
	go func() {
		_, err := c.Lab.A.Request(network, to, lab.From{})
		failed <- err
	}()
	select {
	case p := <-first:
		c.NoError(router.SendICMPErrors(lab.ICMPError{ICMPErrorKind: kind, From: router.Address(c.V4), To: p.Source.Addr(), Quoted: p.Bytes}))
	case err := <-failed:
		c.NoError(err, "%s: the first packet reached no node", what)
	}
	_, ok := arrivals[c.Lab.A].Next(c.Patience.For(time.Second))
	c.True(ok, "%s: the client got no %s about its first packet", what, kind)
	c.ErrorIs(<-failed, want, "%s: the client got %s about its first packet", what, kind)
}
