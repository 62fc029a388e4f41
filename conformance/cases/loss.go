package cases

import (
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/headers"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// The traffic of the case loss. If one packet in a hundred is lost, all of 1,500 datagrams arrive with a probability of 3e-7.
const (
	lossFlows, lossRounds = 30, 50
	lossBytes             = 2 << 20
	// lossWindow is what may be on the way, so that no queue overflows: of a host's processor (1,000 packets), or of a socket.
	lossWindow = 64 << 10

	// Segments of a proxy cannot be found again behind it. So its losses are counted by the hosts that send them again. On a busy machine they
	// also send segments again that are late. The receiver mostly tells them, but not after the end of a connection. If one in a hundred of
	// the 5,800 segments of proxiedBytes is lost, at most lateSegments are lost with a probability of 1e-8.
	proxiedBytes = 8 << 20
	lateSegments = 20
	lossTries    = 4
)

func loss() Case {
	return Case{
		Name:     "loss",
		Shows:    "no packet is lost or doubled, in each forwarding mode: all datagrams come back once, and segments are not sent again because they were lost; a dataplane that forwards packets delivers each of thousands once, changed only where it must be",
		Untraced: true,
		Run: func(c *C) {
			c.NoError(lab.AllowFastOpen(c.Lab.A, c.Lab.Nodes[1]))
			c.Serve(30080)
			c.NoError(c.Lab.ServeVIPOnNodes(c.At(3, 80), 30080))
			for i, mode := range []model.Forwarding{model.NAT, model.Transparent, model.Direct} {
				if need, lacks := c.Description.Lacks(model.Frontend{Forwarding: mode}); lacks {
					c.Logf("not in mode %s, because feature %s is not declared", mode, need)
					continue
				}
				c.requireNoLoss(mode, c.At(1+i, 80))
			}
		},
	}
}

// requireNoLoss sends datagrams and segments in both directions in one mode.
func (c *C) requireNoLoss(mode model.Forwarding, to netip.AddrPort) {
	gateway := -1
	if mode == model.Transparent {
		gateway = 0
	}
	c.NoError(c.Lab.RouteNodesVia(gateway))
	c.applyMode(mode, to)
	w := c.watchFlows(mode, to)
	c.NoError(c.Lab.A.EchoInRounds(to, lossFlows, lossRounds), mode)
	if slices.Contains(c.Description.Features, dataplane.PacketHeaders) {
		c.NoError(c.Lab.A.TransferInWindow(to, lossBytes, lossWindow), mode)
		c.connectInAllWays(to)
		c.requireSame(w)
		return
	}
	c.requireDatagramsOnce(w)
	c.requireFewRetransmissions(to)
}

// requireFewRetransmissions transfers data, and requires that hardly any segments were lost. What a busy machine has made late or dropped by itself does
// not happen each time.
func (c *C) requireFewRetransmissions(to netip.AddrPort) {
	var lost []int
	for range lossTries {
		before := c.unexplained()
		c.NoError(c.Lab.A.TransferInWindow(to, proxiedBytes, lossWindow))
		lost = append(lost, c.unexplained()-before)
		if lost[len(lost)-1] <= lateSegments {
			return
		}
	}
	c.LessOrEqual(slices.Min(lost), lateSegments, "segments that were sent again in each of %d transfers, and that their receivers had not got", lossTries)
}

// connectInAllWays makes connections that begin and end differently: short ones, some with Fast Open, one that each side closes first, and one that each
// side resets.
func (c *C) connectInAllWays(to netip.AddrPort) {
	c.Request(10, "tcp", to)
	before, err := c.Lab.A.FastOpened()
	c.NoError(err)
	for range 4 {
		_, err := c.Lab.A.RequestFastOpen(to)
		c.NoError(err, "a connection with Fast Open")
	}
	after, err := c.Lab.A.FastOpened()
	c.NoError(err)
	c.Greater(after, before, "no SYN with data was accepted with its data")
	c.NoError(c.Lab.A.UploadAndWait(to, 10_000, 0))
	c.NoError(c.Lab.A.RequestReset(to))
	stream, err := c.Lab.A.Stream(to, lab.From{})
	c.NoError(err)
	c.NoError(stream.Reset())
}

// applyMode serves a port of an external address by endpoint 1 in a mode.
func (c *C) applyMode(mode model.Forwarding, at netip.AddrPort) {
	var frontends []model.Frontend
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		f := c.Frontend(protocol, 1, at.Port(), 30080, "one")
		f.VIP, f.Forwarding = at.Addr(), mode
		if mode == model.Direct {
			f.TargetPort = at.Port()
		}
		frontends = append(frontends, f)
	}
	c.Apply([]model.Pool{c.Pool("one", 1)}, frontends...)
}

// unexplained returns how many segments were lost on the way to and from all hosts, as these know it.
func (c *C) unexplained() (total int) {
	for _, host := range []*lab.Host{c.Lab.A, c.Gateway.Host, c.Lab.Nodes[1]} {
		n, err := host.Unexplained()
		c.NoError(err)
		total += n
	}
	return total
}

// watched are recordings of client a and of node 1, with the packets for one port of an external address.
type watched struct {
	headers.Flow
	client, node *lab.Recording
}

func (c *C) watchFlows(mode model.Forwarding, to netip.AddrPort) watched {
	w := watched{Flow: headers.Flow{Mode: mode, Client: netip.AddrPortFrom(c.Lab.A.Address(c.V4), 0), VIP: to,
		Endpoint: netip.AddrPortFrom(lab.EndpointAddress(c.V4, 1), 30080), Gateway: c.Gateway.Address(c.V4)}}
	at := w.Endpoint
	if mode == model.Direct {
		at = to
	}
	of := func(at netip.AddrPort) func(headers.Packet) bool {
		return func(p headers.Packet) bool { return p.Source == at || p.Target == at }
	}
	w.client, w.node = c.record(c.Lab.A, of(to)), c.record(c.Lab.Nodes[1], of(at))
	return w
}

// requireSame requires that a node got what the client sent, and the other way round.
func (c *C) requireSame(w watched) {
	c.Eventually(func() bool {
		got, sent := w.client.Counts()
		arrived, replied := w.node.Counts()
		return sent == arrived && replied == got
	}, "the client sent other numbers of packets than the node got, or the other way round")
	got, sent, err := w.client.Close()
	c.NoError(err)
	arrived, replied, err := w.node.Close()
	c.NoError(err)
	requests := headers.Match(sent, arrived, func(p headers.Packet) headers.Path {
		flow := w.Flow
		flow.Client = p.Source
		return flow.Requests()
	})
	replies := headers.Match(replied, got, func(headers.Packet) headers.Path { return w.Replies() })
	c.True(requests.IsClean(), "mode %s, %d packets to the node: %+v", w.Mode, len(sent), requests)
	c.True(replies.IsClean(), "mode %s, %d packets to the client: %+v", w.Mode, len(replied), replies)
}

// requireDatagramsOnce requires that the node got each datagram once, and the client each answer. Echo has shown that they are the right ones.
func (c *C) requireDatagramsOnce(w watched) {
	for host, recording := range map[string]*lab.Recording{"the node": w.node, "the client": w.client} {
		in, _, err := recording.Close()
		c.NoError(err)
		c.Equal(lossFlows*lossRounds, countDatagrams(in), "datagrams at %s", host)
	}
}

func countDatagrams(packets []headers.Packet) (n int) {
	for _, p := range packets {
		if p.Protocol == headers.UDP {
			n++
		}
	}
	return n
}
