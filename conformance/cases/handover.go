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
		Shows:    "a connection continues when its packets come to another gateway, because gateways redirect them, one after another, to the gateway that knows the connection; without redirects it ends, and new connections are never redirected",
		Needs:    []dataplane.Feature{dataplane.Redirects},
		Gateways: 3,
		Run: func(c *C) {
			c.Serve(30080)
			pool := []model.Pool{c.Pool("all", 0, 1, 2, 3)}
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply(pool, frontends...)
			redirect := func(gateway int, h model.Redirect) {
				with := slices.Clone(frontends)
				with[0].Redirect = h
				c.Gateways[gateway].Apply(model.Snapshot{Pools: pool, Frontends: with})
			}
			streams := c.openStreams(20)
			remote, err := c.Lab.B.Stream(c.At(1, 80), lab.From{})
			c.NoError(err)
			c.Cleanup(func() { remote.Close() })
			streams = append(streams, remote)

			redirect(1, model.Redirect{Next: c.frontAddress(0), Limit: 1})
			c.routeVIPsTo(1)
			c.requireAlive(streams, nil)
			c.requireServedBy(1)
			// Redirects do not depend on the plugins of the two gateways.
			c.NoError(c.Gateways[0].Process.Kill())
			c.NoError(c.Gateways[1].Process.Kill())
			c.Gateways[0].Start()
			c.Gateways[1].Start()
			redirect(1, model.Redirect{Next: c.frontAddress(0), Limit: 1})
			c.requireAlive(streams, nil)

			streams = append(streams, c.openStreams(10)...)
			for gateway := range c.Gateways {
				redirect(gateway, model.Redirect{Next: c.frontAddress((gateway + 1) % len(c.Gateways)), Limit: uint8(len(c.Gateways) - 1)})
			}
			for gateway := range c.Gateways {
				c.routeVIPsTo(gateway)
				c.requireAlive(streams, nil)
				c.requireServedBy(gateway)
			}

			redirect(1, model.Redirect{Next: c.frontAddress(2), Limit: 1})
			redirect(2, model.Redirect{Next: c.frontAddress(1), Limit: 1})
			c.requireUnknown(2, streams[:10])
			redirect(1, model.Redirect{})
			c.requireUnknown(1, streams[10:20])
			c.requireServedBy(1)
		},
	}
}

// routeVIPsTo routes all packets for external addresses to one gateway.
func (c *C) routeVIPsTo(gateway int) { c.NoError(c.Lab.RouteVIPs(gateway)) }

// requireUnknown requires that connections end at once if neither the gateway nor the gateways to which it redirects know them.
func (c *C) requireUnknown(gateway int, streams []*lab.Stream) {
	c.routeVIPsTo(gateway)
	begin := time.Now()
	for _, s := range streams {
		c.Error(s.Alive(), "a connection that no gateway knows continues")
	}
	c.Less(time.Since(begin), c.Patience.For(2*time.Second), "connections end too slowly")
}

// frontAddress returns a gateway's address on the clients' segment.
func (c *C) frontAddress(gateway int) netip.Addr { return c.Lab.GatewayAddress(c.V4, gateway) }

// requireServedBy requires that one gateway serves new flows: nodes see its address.
func (c *C) requireServedBy(gateway int) {
	for _, network := range networks {
		answers, err := c.Lab.A.RequestTimes(20, network, c.At(1, 80))
		c.NoError(err)
		for _, a := range answers {
			c.Equal(c.Lab.Gateways[gateway].Address(c.V4), a.Client.Addr(), network)
		}
	}
}
