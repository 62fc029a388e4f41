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
		Shows:    "a connection goes on when its address, or a router, leads to another gateway, by the gateway that knows it, which others ask one after another, until they do not any more; new ones have nothing to do with that",
		Needs:    []dataplane.Feature{dataplane.Handover},
		Gateways: 3,
		Run: func(c *C) {
			c.Serve(30080)
			pool := []model.Pool{c.Pool("all", 0, 1, 2, 3)}
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply(pool, frontends...)
			asks := func(gateway int, h model.Handover) {
				with := slices.Clone(frontends)
				with[0].Handover = h
				c.Gateways[gateway].Apply(model.Snapshot{Pools: pool, Frontends: with})
			}
			streams := c.streams(20)
			beyond, err := c.Lab.B.Stream(c.At(1, 80), lab.From{})
			c.NoError(err)
			c.Cleanup(func() { beyond.Close() })
			streams = append(streams, beyond)

			asks(1, model.Handover{Next: c.frontOf(0), Asks: 1})
			c.leadTo(1)
			c.alive(streams, nil)
			c.newOnesBy(1)
			// The former gateway's process is of no account, nor is the new one's.
			c.NoError(c.Gateways[0].Process.Kill())
			c.NoError(c.Gateways[1].Process.Kill())
			c.Gateways[0].Start()
			c.Gateways[1].Start()
			asks(1, model.Handover{Next: c.frontOf(0), Asks: 1})
			c.alive(streams, nil)

			streams = append(streams, c.streams(10)...)
			for gateway := range c.Gateways {
				asks(gateway, model.Handover{Next: c.frontOf((gateway + 1) % len(c.Gateways)), Asks: uint8(len(c.Gateways) - 1)})
			}
			for gateway := range c.Gateways {
				c.leadTo(gateway)
				c.alive(streams, nil)
				c.newOnesBy(gateway)
			}

			asks(1, model.Handover{Next: c.frontOf(2), Asks: 1})
			asks(2, model.Handover{Next: c.frontOf(1), Asks: 1})
			c.unknownTo(2, streams[:10])
			asks(1, model.Handover{})
			c.unknownTo(1, streams[10:20])
			c.newOnesBy(1)
		},
	}
}

// leadTo has a gateway be met by all packets for external addresses.
func (c *C) leadTo(gateway int) { c.NoError(c.Lab.RouteVIPs(gateway)) }

// unknownTo requires that connections end at once that the gateway does not know, nor any that it asks.
func (c *C) unknownTo(gateway int, streams []*lab.Stream) {
	c.leadTo(gateway)
	begin := time.Now()
	for _, s := range streams {
		c.Error(s.Alive(), "nobody knows it any more")
	}
	c.Less(time.Since(begin), c.Patience.For(2*time.Second), "that is said at once")
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
