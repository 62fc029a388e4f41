package cases

import (
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func handover() Case {
	return Case{
		Name:     "handover",
		Shows:    "a connection goes on when another gateway takes its address over, by the gateway that knows it, until that is not asked any more; new ones have nothing to do with that",
		Needs:    []dataplane.Feature{dataplane.Handover},
		Gateways: 2,
		Run: func(c *C) {
			c.Serve(30080)
			pool := []model.Pool{c.Pool("all", 0, 1, 2, 3)}
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply(pool, frontends...)
			streams := c.streams(20)
			beyond, err := c.Lab.B.Stream(c.At(1, 80), lab.From{})
			c.NoError(err)
			c.Cleanup(func() { beyond.Close() })
			streams = append(streams, beyond)

			moved := slices.Clone(frontends)
			moved[0].Former = c.frontOf(0)
			c.Gateways[1].Apply(model.Snapshot{Pools: pool, Frontends: moved})
			c.NoError(c.Lab.RouteVIPs(1))
			c.alive(streams, nil)
			c.newOnesBy(1)
			// The former gateway's process is of no account, nor is the new one's.
			c.NoError(c.Gateways[0].Process.Kill())
			c.NoError(c.Gateways[1].Process.Kill())
			c.Gateways[1].Start()
			c.Gateways[1].Apply(model.Snapshot{Pools: pool, Frontends: moved})
			c.alive(streams, nil)

			moved[0].Former = netip.Addr{}
			c.Gateways[1].Apply(model.Snapshot{Pools: pool, Frontends: moved})
			begin := time.Now()
			for _, s := range streams {
				c.Error(s.Alive(), "nobody knows it any more")
			}
			c.Less(time.Since(begin), 2*time.Second, "that is said at once")
			c.newOnesBy(1)
		},
	}
}

// frontOf is a gateway's address on the clients' segment.
func (c *C) frontOf(gateway int) netip.Addr { return c.Lab.Front(c.V4, gateway) }

// newOnesBy requires that new flows are served by one gateway, whose address nodes see.
func (c *C) newOnesBy(gateway int) {
	for _, network := range networks {
		answers, err := c.Lab.A.AskTimes(20, network, c.At(1, 80))
		c.NoError(err)
		for _, a := range answers {
			c.Equal(c.Lab.Gateways[gateway].Address(c.V4), a.Client.Addr(), network)
		}
	}
}
