package cases

import (
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/headers"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// The traffic of the case loss. If one packet in a hundred is lost, all of 1,500 datagrams arrive with a probability of 3e-7, and of
// 2,900 segments of data at most three are lost with a probability of 1e-9.
const (
	lossFlows, lossRounds = 30, 50
	lossBytes             = 2 << 20
	// lossWindow is what may be on the way, so that no queue overflows: of a host's processor (1,000 packets), or of a socket.
	lossWindow = 64 << 10
	// lateSegments are retransmissions, in all transfers of a mode, that may be explained by something else than loss. A host that
	// closes a connection may do so before it hears that a segment arrived twice.
	lateSegments = 3
)

func loss() Case {
	return Case{
		Name:     "loss",
		Shows:    "no packet is lost or doubled, in each forwarding mode: thousands of datagrams come back once, and no segment has to be sent again; a dataplane that forwards packets changes only what it must in each of them",
		Untraced: true,
		Run: func(c *C) {
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
	before := c.unexplained()
	c.NoError(c.Lab.A.Echo(to, lossFlows, lossRounds), mode)
	c.NoError(c.Lab.A.TransferInWindow(to, lossBytes, lossWindow), mode)
	c.LessOrEqual(c.unexplained()-before, lateSegments, "mode %s: segments were sent again, and their receivers had not got them", mode)
	c.requireSame(w)
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

// requireSame requires that a node got what the client sent, and the other way round. A proxy only has to pass on each datagram once.
func (c *C) requireSame(w watched) {
	forwards := slices.Contains(c.Description.Features, dataplane.PacketHeaders)
	c.Eventually(func() bool {
		got, sent := w.client.Counts()
		arrived, replied := w.node.Counts()
		return !forwards || sent == arrived && replied == got
	}, "the client sent other numbers of packets than the node got, or the other way round")
	got, sent, err := w.client.Close()
	c.NoError(err)
	arrived, replied, err := w.node.Close()
	c.NoError(err)
	if !forwards {
		c.Equal(lossFlows*lossRounds, countDatagrams(arrived), "datagrams at the node")
		c.Equal(lossFlows*lossRounds, countDatagrams(got), "datagrams at the client")
		return
	}
	requests := headers.Match(sent, arrived, func(p headers.Packet) headers.Path {
		flow := w.Flow
		flow.Client = p.Source
		return flow.Requests()
	})
	replies := headers.Match(replied, got, func(headers.Packet) headers.Path { return w.Replies() })
	c.True(requests.IsClean(), "mode %s, %d packets to the node: %+v", w.Mode, len(sent), requests)
	c.True(replies.IsClean(), "mode %s, %d packets to the client: %+v", w.Mode, len(replied), replies)
}

func countDatagrams(packets []headers.Packet) (n int) {
	for _, p := range packets {
		if p.Protocol == headers.UDP {
			n++
		}
	}
	return n
}
