package cases

import (
	"errors"
	"os"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func switching() Case {
	return Case{
		Name:     "switching",
		Switches: true,
		Shows:    "another backend takes over under traffic, and gives back: no new flow fails, UDP flows go on, established connections go on or end, and none is left hanging",
		Run: func(c *C) {
			c.Serve(30080)
			c.Gateway.Apply(c.switched(0, 1))
			for _, other := range c.backends.Others {
				c.switchUnderLoad(other)
				c.switchUnderLoad(c.backends.Judged)
			}
		},
	}
}

// switched is what is served before and after.
func (c *C) switched(endpoints ...int) model.Snapshot {
	return model.Snapshot{
		Pools:     []model.Pool{c.Pool("all", endpoints...), c.Pool("none")},
		Frontends: []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "none")},
	}
}

func (c *C) switchUnderLoad(to Backend) {
	streams, flows := c.streamsAnew(5), c.flows(5)
	tcp, udp := c.Load("tcp", c.At(1, 80)), c.Load("udp", c.At(1, 80))
	c.Gateway.Switch(to, c.switched(0, 1))
	kept := c.aliveOrEnded(streams)
	asked := 0
	for _, f := range flows {
		if lab.Unanswered(f) {
			asked++
			_, err := lab.Who(f)
			c.NoError(err, "a UDP flow that is older than the switch")
		}
	}
	made := tcp.Stop() + udp.Stop()
	c.MustRefuse("tcp", c.At(1, 81))
	description, err := c.Gateway.Process.Describe(c.ctx)
	c.NoError(err)
	c.Measuref("to %s: %d of %d connections kept, %d of %d UDP flows had to ask again, 0 of %d new flows failed", description.Name, kept, len(streams), asked, len(flows), made)
	// Nothing is decided by the one that has gone.
	c.Gateway.Apply(c.switched(2))
	for _, network := range networks {
		c.Equal(map[int]int{2: 5}, c.Ask(5, network, c.At(1, 80)))
	}
	for _, f := range flows {
		_ = lab.Unanswered(f) // what it met before has left the pool: this may be lost
		c.Equal(2, c.endpointOf(f), "a UDP flow that is older than the switch")
	}
	c.Gateway.Apply(c.switched(0, 1))
	for _, s := range streams {
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
