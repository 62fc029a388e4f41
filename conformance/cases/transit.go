package cases

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func transit() Case {
	return Case{
		Name:  "transit",
		Shows: "packets that the gateway forwards as a router, connections to and from the gateway itself, and those that another program rewrites are left alone, while frontends come and go, and during and after a purge",
		Run: func(c *C) {
			c.Serve(30080)
			g := c.spare(2)
			o := c.othersAt(g)
			o.require("before the backend")
			g.Start()
			served := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"),
				c.Frontend(model.TCP, 1, 30080, 30080, "all"), c.Frontend(model.UDP, 1, 30080, 30080, "all")}
			streams := o.openStreams()
			load := o.load()
			for i := range 12 {
				left := slices.DeleteFunc([]int{0, 1, 2, 3}, func(n int) bool { return n == i%5 })
				others := []model.Frontend{c.Frontend(model.TCP, 2, uint16(1000+i%3), 30080, "all"), c.Frontend(model.UDP, 3, 53, 30080, "all")}
				g.Apply(model.Snapshot{Pools: []model.Pool{c.Pool("all", left...)}, Frontends: append(slices.Clone(served), others[:i%3]...)})
				c.Request(2, "tcp", c.At(1, 80))
			}
			o.require("with frontends")
			c.requireAlive(streams, nil)
			c.openStreams(2)
			c.NoError(g.Process.Close(c.ctx, true))
			c.Positive(load())
			o.require("after the purge")
			c.requireAlive(streams, nil)
		},
	}
}

// others are hosts that use the gateway, but no frontend.
type others struct {
	*C
	gateway *Gateway
	client  *lab.Host
	node    *lab.Host
	// addresses are those of the gateway itself: on both segments, and one beside those of frontends.
	addresses []netip.Addr
}

// Ports of servers beside the frontends. The flows to masqueraded are rewritten by another program.
const (
	clientPort  = 9000
	masqueraded = 9001
)

// othersAt makes the gateway the router between client a and the nodes, and a server.
func (c *C) othersAt(g *Gateway) *others {
	o := &others{C: c, gateway: g, client: c.Lab.A, node: c.Lab.Nodes[0], addresses: []netip.Addr{c.frontAddress(2), g.Address(c.V4), c.VIP(200)}}
	c.NoError(errors.Join(c.Lab.RouteNodesSegmentVia(2), c.Lab.RouteNodesVia(2), g.AddAddress(c.VIP(200)), g.Masquerade(masqueraded)))
	c.NoError(errors.Join(g.SendAllErrors(), o.node.SendAllErrors()))
	keep := func(s *lab.Server, err error) {
		c.NoError(err)
		c.Cleanup(func() { s.Close() })
	}
	keep(g.Serve(22))
	for _, address := range o.addresses {
		// A proxy cannot have the port of a frontend if another program has it at all addresses.
		keep(g.ServeAt(netip.AddrPortFrom(address, 80)))
		keep(g.ServeAt(netip.AddrPortFrom(address, 30080)))
	}
	keep(o.client.Serve(clientPort))
	keep(o.client.Serve(masqueraded))
	return o
}

// otherFlow is a flow that is no frontend's.
type otherFlow struct {
	what string
	from *lab.Host
	to   netip.AddrPort
	// sees is the address from which the flow comes, and that the server has to see. It may be invalid if another program changes it.
	sees netip.Addr
}

func (o *others) flows() []otherFlow {
	at := netip.AddrPortFrom
	client, node, gateway := o.client.Address(o.V4), o.node.Address(o.V4), o.gateway.Address(o.V4)
	flows := []otherFlow{
		{"a client to a node's port, which is also an endpoint", o.client, at(node, 30080), client},
		{"a node to a client", o.node, at(client, clientPort), node},
		{"the gateway to a client", o.gateway.Host, at(client, clientPort), o.frontAddress(2)},
		{"the gateway to an endpoint", o.gateway.Host, at(node, 30080), gateway},
		{"a node to the gateway", o.node, at(gateway, 80), node},
	}
	for _, address := range o.addresses {
		for _, port := range []uint16{22, 80, 30080} {
			flows = append(flows, otherFlow{"a client to the gateway", o.client, at(address, port), client})
		}
	}
	return flows
}

// try makes a flow of each kind.
func (o *others) try() error {
	for _, f := range o.flows() {
		for _, network := range networks {
			answer, err := f.from.Request(network, f.to, lab.From{Address: f.sees})
			if err != nil {
				return fmt.Errorf("%s: %w", f.what, err)
			}
			if answer.Endpoint != f.to.Addr() || answer.Client.Addr() != f.sees {
				return fmt.Errorf("%s: %s to %s came to %s from %s", f.what, network, f.to, answer.Endpoint, answer.Client)
			}
		}
	}
	return nil
}

// require requires that all kinds of packets pass unchanged.
func (o *others) require(when string) {
	o.NoError(o.try(), when)
	node := o.node.Address(o.V4)
	for _, network := range networks {
		answer, err := o.client.Request(network, netip.AddrPortFrom(node, 30080), lab.From{Port: 7777})
		o.NoError(err, when)
		o.Equal(netip.AddrPortFrom(o.client.Address(o.V4), 7777), answer.Client, "%s: the port of a forwarded %s flow", when, network)
		for _, to := range []netip.Addr{node, o.addresses[0], o.addresses[2]} {
			o.True(o.client.Refused(network, netip.AddrPortFrom(to, 7778)).Outright, "%s: a closed %s port of %s", when, network, to)
		}
		o.True(o.gateway.Refused(network, netip.AddrPortFrom(node, 7778)).Outright, "%s: a closed %s port, from the gateway", when, network)
	}
	for _, to := range append([]netip.Addr{node}, o.addresses...) {
		o.NoError(o.client.Ping(to), when)
	}
	o.NoError(o.node.Ping(o.client.Address(o.V4)), when)
	o.NoError(o.gateway.Ping(node), when)
	o.NoError(o.client.ExpiresOnTheWay(netip.AddrPortFrom(node, 30080)), when)
	o.requireFragments(when)
}

// requireFragments sends a datagram in fragments through the gateway, and one to the gateway itself.
func (o *others) requireFragments(when string) {
	large := bytes.Repeat([]byte("kubelb"), 1000)
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(o.node.Address(o.V4), 30080), netip.AddrPortFrom(o.addresses[0], 80)} {
		c, err := o.client.Dial("udp", to, lab.From{})
		o.NoError(err)
		o.NoError(c.SetDeadline(time.Now().Add(o.Patience.For(4 * time.Second))))
		_, err = c.Write(large)
		o.NoError(err)
		got := make([]byte, len(large)+1)
		n, err := io.ReadAtLeast(c, got, 1)
		o.NoError(err, "%s: fragments to %s", when, to)
		o.True(bytes.Equal(large, got[:n]), "%s: fragments to %s", when, to)
		o.NoError(c.Close())
	}
}

// openStreams opens a connection of each kind, and one that another program rewrites.
func (o *others) openStreams() (streams []*lab.Stream) {
	flows := append(o.flows(), otherFlow{from: o.node, to: netip.AddrPortFrom(o.client.Address(o.V4), masqueraded)})
	for _, f := range flows {
		s, err := f.from.Stream(f.to, lab.From{Address: f.sees})
		o.NoError(err, f.what)
		o.Cleanup(func() { s.Close() })
		streams = append(streams, s)
	}
	return streams
}

// load makes flows of each kind, one after another, until the returned function is called. That requires that none failed, and returns their number.
func (o *others) load() (stop func() int) {
	ended, done := make(chan struct{}), make(chan error, 1)
	rounds := 0
	go func() {
		for {
			select {
			case <-ended:
				done <- nil
				return
			default:
			}
			if err := o.try(); err != nil {
				done <- err
				return
			}
			rounds++
		}
	}()
	return func() int {
		close(ended)
		o.NoError(<-done, "while frontends came and went, and during a purge")
		return rounds
	}
}
