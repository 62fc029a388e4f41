package cases

import (
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/headers"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func packetHeaders() Case {
	return Case{
		Name:  "headers",
		Shows: "only addresses, ports, TTL and checksums of a packet change on its way, in both directions: DSCP, ECN, identification, fragment flags, IPv4 options, flow label, extension headers, and all of TCP's header and options arrive as they were sent",
		Needs: []dataplane.Feature{dataplane.PacketHeaders},
		Run:   func(c *C) { c.headers(model.NAT) },
	}
}

func packetHeadersTransparent() Case {
	return Case{
		Name:  "headers-transparent",
		Shows: "like headers, for a transparent frontend",
		Needs: []dataplane.Feature{dataplane.PacketHeaders, dataplane.Transparent},
		Run: func(c *C) {
			c.NoError(c.Lab.RouteNodesVia(0))
			c.headers(model.Transparent)
		},
	}
}

func packetHeadersDirect() Case {
	return Case{
		Name:  "headers-direct",
		Shows: "like headers, for a direct frontend: addresses and ports stay, too; answers that pass a gateway which is the nodes' router change only in their TTL",
		Needs: []dataplane.Feature{dataplane.PacketHeaders, dataplane.Direct},
		Run: func(c *C) {
			c.headers(model.Direct)
			c.NoError(c.Lab.RouteNodesVia(0))
			c.exchange(c.craft(model.Direct, model.UDP, 1, 24500), datagramScript(c.V4))
			c.exchange(c.craft(model.Direct, model.TCP, 1, 24501), connectionScript(c.V4))
		},
	}
}

const (
	// craftedTarget is a port at which no server listens: the case itself answers there.
	craftedTarget = 30081
	// fastAfter is how long a UDP flow has to exist before the kernel's flowtables take it (net/netfilter/nf_conntrack_proto_udp.c).
	fastAfter = 2100 * time.Millisecond
)

// headers sends crafted packets from both clients to endpoint 1 and back, and compares each of them with what arrives. The frontends of the second
// VIP have the features that change the way of a packet through the dataplane.
func (c *C) headers(mode model.Forwarding) {
	c.Apply([]model.Pool{c.Pool("one", 1)}, c.craftedFrontends(mode)...)
	for vip := 1; vip <= 2; vip++ {
		port := 24000 + 100*uint16(vip)
		datagrams := c.craft(mode, model.UDP, vip, port)
		begun := time.Now()
		c.exchange(datagrams, datagramScript(c.V4))
		c.exchange(c.craft(mode, model.TCP, vip, port+1), connectionScript(c.V4))
		c.exchange(c.craft(mode, model.TCP, vip, port+2), plainScript())
		c.requireExpiry(mode, datagrams)
		if vip == 1 {
			c.exchange(datagrams, trafficClasses())
			time.Sleep(time.Until(begun.Add(fastAfter)))
			c.exchange(datagrams, datagramScript(c.V4))
			c.exchange(c.craftFrom(c.Lab.B, mode, model.UDP, vip, port+3), trafficClasses()[:20])
			c.exchange(c.craftFrom(c.Lab.B, mode, model.TCP, vip, port+4), plainScript())
		}
	}
}

func (c *C) craftedFrontends(mode model.Forwarding) (out []model.Frontend) {
	for vip := 1; vip <= 2; vip++ {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			f := c.Frontend(protocol, vip, 80, craftedTarget, "one")
			if mode == model.Direct {
				f.TargetPort = 80
			}
			f.Forwarding = mode
			if vip == 2 {
				c.addFeatures(&f)
			}
			out = append(out, f)
		}
	}
	return out
}

// addFeatures restricts, limits and remembers the frontend's clients, as far as the backend declares it.
func (c *C) addFeatures(f *model.Frontend) {
	declares := func(feature dataplane.Feature) bool { return slices.Contains(c.Description.Features, feature) }
	if declares(dataplane.SourceRanges) {
		f.Restricted, f.SourceRanges = true, []netip.Prefix{netip.PrefixFrom(c.Lab.A.Address(c.V4), c.Lab.A.Address(c.V4).BitLen())}
	}
	if declares(dataplane.Affinity) {
		f.AffinityTimeout = time.Hour
	}
	if declares(dataplane.Limits) {
		f.MaxConnections = 1000
	}
	if declares(dataplane.RateLimits) {
		f.MaxNewPerSecond = 1000
	}
	if declares(dataplane.IdleTimeout) {
		f.IdleTimeout = time.Hour
	}
}

// crafted is a flow whose packets the case makes at both ends.
type crafted struct {
	headers.Flow
	protocol uint8
	// client and endpoint are the hosts at both ends.
	client, endpoint *end
	// seen is the client as the endpoint sees it, once it has got a packet.
	seen netip.AddrPort
}

// end is one end of a crafted flow.
type end struct {
	injector  *lab.Injector
	recording *lab.Recording
	// sequence is the sequence number of the next segment.
	sequence uint32
}

// craft prepares a flow from a port of client a, and craftFrom a flow from another client.
func (c *C) craft(mode model.Forwarding, protocol model.Protocol, vip int, port uint16) *crafted {
	return c.craftFrom(c.Lab.A, mode, protocol, vip, port)
}

func (c *C) craftFrom(client *lab.Host, mode model.Forwarding, protocol model.Protocol, vip int, port uint16) *crafted {
	f := &crafted{protocol: headers.TCP, Flow: headers.Flow{Mode: mode, Client: netip.AddrPortFrom(client.Address(c.V4), port), VIP: c.At(vip, 80),
		Endpoint: netip.AddrPortFrom(lab.EndpointAddress(c.V4, 1), craftedTarget), Gateway: c.Gateway.Address(c.V4)}}
	if client == c.Lab.B {
		f.Routers = 1
	}
	if protocol == model.UDP {
		f.protocol = headers.UDP
	}
	at := f.Endpoint
	if mode == model.Direct {
		at = f.VIP
	}
	// Both sequence numbers pass zero soon.
	f.client = c.end(client, 0xffffff00, func(p headers.Packet) bool {
		return p.Protocol == f.protocol && (p.Source == f.Client || p.Target == f.Client)
	})
	f.endpoint = c.end(c.Lab.Nodes[1], 0xffffffa0, func(p headers.Packet) bool {
		return p.Protocol == f.protocol && (p.Source == at || p.Target == at)
	})
	c.NoError(client.Ignore(port))
	c.NoError(c.Lab.Nodes[1].Ignore(at.Port()))
	return f
}

func (c *C) end(host *lab.Host, sequence uint32, keep func(headers.Packet) bool) *end {
	recording := c.record(host, keep)
	injector, err := host.Inject(c.V4)
	c.NoError(err)
	c.Cleanup(func() { injector.Close() })
	return &end{injector, recording, sequence}
}

// exchange sends the packets of a script, one after another, and compares each of them with the packet that arrives at the other end.
func (c *C) exchange(f *crafted, script []step) {
	for _, s := range script {
		path, from, to := f.Requests(), f.client, f.endpoint
		if s.reply {
			path, from, to = f.Replies(), f.endpoint, f.client
		} else if f.seen.IsValid() {
			path.Source = f.seen
		}
		p := f.address(s, from, to)
		if s.summed {
			p = path.Summed(p)
		}
		c.NoError(from.injector.Send(p))
		sent, ok := from.recording.NextOut()
		c.True(ok, "%s: the packet did not leave the host", s.what)
		got, ok := to.recording.NextIn()
		c.True(ok, "%s, mode %s: %s did not arrive", s.what, f.Mode, p)
		c.Empty(path.Differences(sent, got), "%s, mode %s: %s", s.what, f.Mode, p)
		if !s.reply {
			f.seen = got.Source
		}
		from.advance(s)
	}
}

// address returns a step's packet with addresses, ports and sequence numbers.
func (f *crafted) address(s step, from, to *end) headers.Packet {
	p := s.packet
	p.Protocol, p.Source, p.Target = f.protocol, f.Client, f.VIP
	if s.reply {
		p.Source, p.Target = f.Endpoint, f.seen
		if f.Mode == model.Direct {
			p.Source = f.VIP
		}
	}
	if p.TTL == 0 {
		p.TTL = 64
	}
	if f.protocol == headers.TCP {
		p.Sequence = from.sequence - s.back
		if p.Flags&headers.ACK != 0 {
			p.Acknowledged = to.sequence - s.unacknowledged
		}
		if len(s.blocks) > 0 {
			var edges []uint32
			for _, distance := range s.blocks {
				edges = append(edges, to.sequence-distance)
			}
			p.TCPOptions = append(slices.Clone(p.TCPOptions), headers.Options(headers.SACK(edges...))...)
		}
	}
	return p
}

// advance counts what a segment takes of the sequence numbers.
func (e *end) advance(s step) {
	if s.back > 0 {
		return
	}
	e.sequence += uint32(len(s.packet.Payload))
	if s.packet.Flags&(headers.SYN|headers.FIN) != 0 {
		e.sequence++
	}
}

// requireExpiry requires that a packet whose TTL ends at the gateway does not arrive: the next packet is the first one that does. In mode direct
// the gateway need not count as a hop.
func (c *C) requireExpiry(mode model.Forwarding, f *crafted) {
	if mode == model.Direct {
		return
	}
	last := step{what: "a datagram whose TTL ends at the gateway", packet: headers.Packet{TTL: 1, Payload: []byte("last hop")}}
	c.NoError(f.client.injector.Send(f.address(last, f.client, f.endpoint)))
	_, ok := f.client.recording.NextOut()
	c.True(ok, "%s: it did not leave the host", last.what)
	c.exchange(f, []step{{what: "the datagram after one whose TTL ended", packet: headers.Packet{Payload: []byte("next")}}})
}

// record records packets of a host until the recording is closed, or the case ends.
func (c *C) record(host *lab.Host, keep func(headers.Packet) bool) *lab.Recording {
	recording, err := host.Record(keep)
	c.NoError(err)
	c.Cleanup(func() {
		if _, _, err := recording.Close(); err != nil {
			c.Errorf("%v", err)
		}
	})
	return recording
}
