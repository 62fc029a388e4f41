package cases

import (
	"errors"
	"os"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func switching() Case {
	return Case{
		Name:     "switching",
		Switches: true,
		Gateways: 2,
		Shows:    "a switch to another backend and back under traffic, with gateways that redirect, fails no new flow: UDP flows continue, established connections continue for a while after the purge has begun, and then continue or end, and none hangs; connections that continued end when another tenant gets their address",
		Run: func(c *C) {
			c.Serve(30080)
			c.applyForSwitch(1, 0, 1)
			c.applyForSwitch(0, 0, 1)
			for _, other := range c.backends.Others {
				c.switchUnderLoad(other)
				c.switchUnderLoad(c.backends.Tested)
			}
		},
	}
}

// applyForSwitch applies the frontends that are served before and after a switch. Gateways redirect to one another, if the
// backend can.
func (c *C) applyForSwitch(gateway int, endpoints ...int) {
	g := c.Gateways[gateway]
	frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "none")}
	description, err := g.Process.Describe(c.ctx)
	c.NoError(err)
	if slices.Contains(description.Features, dataplane.Redirects) {
		frontends[0].Redirect = model.Redirect{Next: c.frontAddress(1 - gateway), Limit: 1}
	}
	g.Apply(model.Snapshot{Pools: []model.Pool{c.Pool("all", endpoints...), c.Pool("none")}, Frontends: frontends})
}

func (c *C) switchUnderLoad(to Backend) {
	streams, flows, others := c.reopenStreams(5), c.openFlows(5), c.openStreams(5)
	// The load has one connection at a time. It may end at the switch or at the purge, as all established connections may.
	tcp, udp := c.loadWithResets("tcp", c.At(1, 80), 2), c.Load("udp", c.At(1, 80))
	c.Gateway.Switch(to, func() { c.applyForSwitch(0, 0, 1) }, func(grace func() bool) { c.requireAliveDuring(grace, others) })
	kept := c.countAlive(streams)
	repeated := 0
	for _, f := range flows {
		if lab.Unanswered(f, c.Patience) {
			repeated++
			_, err := lab.RequestAddresses(f, c.Patience)
			c.NoError(err, "a UDP flow from before the switch")
		}
	}
	made := tcp.Stop() + udp.Stop()
	c.MustRefuse("tcp", c.At(1, 81))
	description, err := c.Gateway.Process.Describe(c.ctx)
	c.NoError(err)
	c.Measuref("to %s: %d of %d connections kept, %d of %d UDP flows had to send again, 0 of %d new flows failed", description.Name, kept, len(streams), repeated, len(flows), made)
	// The old backend decides nothing any more.
	c.applyForSwitch(0, 2)
	for _, network := range networks {
		c.Equal(map[int]int{2: 5}, c.Request(5, network, c.At(1, 80)))
	}
	for _, f := range flows {
		_ = lab.Unanswered(f, c.Patience) // its former endpoint has left the pool, so this datagram may be lost
		c.Equal(2, c.endpointOf(f), "a UDP flow from before the switch")
	}
	c.applyForSwitch(0, 0, 1)
	c.countAlive(others)
	c.Gateway.Apply(c.ownedBy(otherTenant, 3, 30080))
	c.Zero(c.countAlive(slices.Concat(streams, others)), "connections of the former owner continue")
	c.applyForSwitch(0, 0, 1)
	for _, s := range slices.Concat(streams, others) {
		c.NoError(s.Reset())
	}
}

// requireAliveDuring requires that connections continue during the grace. A connection that ends when it is over is in time.
func (c *C) requireAliveDuring(grace func() bool, streams []*lab.Stream) {
	for _, s := range streams {
		if !grace() {
			return
		}
		if err := s.Alive(); err != nil && grace() {
			c.NoError(err, "a connection ends sooner after the beginning of the purge than %s", dataplane.PurgeGrace)
		}
	}
}

// reopenStreams opens connections from the same ports each time, so that a backend meets what another one knows of these
// ports. Clients may have these ports, but the kernel does not choose them by itself.
func (c *C) reopenStreams(n int) []*lab.Stream {
	var out []*lab.Stream
	for i := range n {
		s, err := c.Lab.A.Stream(c.At(1, 80), lab.From{Port: 61000 + uint16(i)})
		if err != nil {
			c.Logf("sockets of client a: %v", c.Lab.A.Sockets())
		}
		c.NoError(err)
		out = append(out, s)
	}
	return out
}

// countAlive counts the connections that continue. The others must have ended: a connection that hangs is worse than one
// that ends.
func (c *C) countAlive(streams []*lab.Stream) int {
	kept := 0
	for _, s := range streams {
		err := s.Alive()
		if err == nil {
			kept++
		}
		c.False(errors.Is(err, os.ErrDeadlineExceeded), "a connection hangs")
	}
	return kept
}
