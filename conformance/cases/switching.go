package cases

import (
	"errors"
	"os"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func switching() Case {
	return Case{
		Name:     "switching",
		Switches: true,
		Gateways: 2,
		Shows:    "another backend takes over under traffic, and gives back, where gateways ask one another about connections: no new flow fails, UDP flows go on, established connections go on or end, and none is left hanging; those that went on end when another tenant has their address",
		Run: func(c *C) {
			c.Serve(30080)
			c.applySwitched(1, 0, 1)
			c.applySwitched(0, 0, 1)
			for _, other := range c.backends.Others {
				c.switchUnderLoad(other)
				c.switchUnderLoad(c.backends.Judged)
			}
		},
	}
}

// applySwitched has a gateway serve what is served before and after. It asks the other one about connections, if it can.
func (c *C) applySwitched(gateway int, endpoints ...int) {
	g := c.Gateways[gateway]
	frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "none")}
	description, err := g.Process.Describe(c.ctx)
	c.NoError(err)
	if slices.Contains(description.Features, dataplane.Handover) {
		frontends[0].Handover = model.Handover{Next: c.frontOf(1 - gateway), Asks: 1}
	}
	g.Apply(model.Snapshot{Pools: []model.Pool{c.Pool("all", endpoints...), c.Pool("none")}, Frontends: frontends})
}

// lettingEnd is for how long connections go on, at least, when their backend goes.
const lettingEnd = 3 * time.Second

func (c *C) switchUnderLoad(to Backend) {
	streams, flows, young := c.streamsAnew(5), c.flows(5), c.streams(5)
	tcp, udp := c.Load("tcp", c.At(1, 80)), c.Load("udp", c.At(1, 80))
	begun := time.Now()
	c.Gateway.Switch(to, func() { c.applySwitched(0, 0, 1) }, func() {
		if time.Since(begun) < lettingEnd {
			c.alive(young, nil)
		}
	})
	kept := c.aliveOrEnded(streams)
	asked := 0
	for _, f := range flows {
		if lab.Unanswered(f, c.Patience) {
			asked++
			_, err := lab.Who(f, c.Patience)
			c.NoError(err, "a UDP flow that is older than the switch")
		}
	}
	made := tcp.Stop() + udp.Stop()
	c.MustRefuse("tcp", c.At(1, 81))
	description, err := c.Gateway.Process.Describe(c.ctx)
	c.NoError(err)
	c.Measuref("to %s: %d of %d connections kept, %d of %d UDP flows had to ask again, 0 of %d new flows failed", description.Name, kept, len(streams), asked, len(flows), made)
	// Nothing is decided by the one that has gone.
	c.applySwitched(0, 2)
	for _, network := range networks {
		c.Equal(map[int]int{2: 5}, c.Ask(5, network, c.At(1, 80)))
	}
	for _, f := range flows {
		_ = lab.Unanswered(f, c.Patience) // what it met before has left the pool: this may be lost
		c.Equal(2, c.endpointOf(f), "a UDP flow that is older than the switch")
	}
	c.applySwitched(0, 0, 1)
	c.aliveOrEnded(young)
	c.Gateway.Apply(c.ownedBy("u", 3, 30080))
	c.Zero(c.aliveOrEnded(slices.Concat(streams, young)), "connections of the former owner go on")
	c.applySwitched(0, 0, 1)
	for _, s := range slices.Concat(streams, young) {
		c.NoError(s.Reset())
	}
}

// streamsAnew opens connections from the same ports each time, so that a backend meets what another one knew of them, and has
// them reset in the end. The ports are such as clients have, but none that the kernel gives by itself.
func (c *C) streamsAnew(n int) []*lab.Stream {
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

// aliveOrEnded counts the connections that go on. The others must have ended: a peer that waits for ever is worse off.
func (c *C) aliveOrEnded(streams []*lab.Stream) int {
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
