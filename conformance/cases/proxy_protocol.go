package cases

import (
	"net/netip"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func proxyProtocol() Case {
	return Case{
		Name:  "proxy-protocol",
		Shows: "a frontend with the PROXY protocol sends a header of version 2 with the client's address and port; other frontends send none",
		Needs: []dataplane.Feature{dataplane.ProxyProtocol},
		Run: func(c *C) {
			c.Serve(30080)
			for _, node := range c.Lab.Nodes {
				server, err := node.ServeProxied(30081)
				c.NoError(err)
				c.Cleanup(func() { server.Close() })
			}
			pools := []model.Pool{c.Pool("all", 0, 1, 2, 3)}
			plain, proxied := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30081, "all")
			proxied.ProxyProtocol = true
			c.Apply(pools, plain, proxied)
			streams := c.openStreams(5)
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				for i := range 20 {
					from := lab.From{Port: 22000 + uint16(i)}
					answer, err := client.Request("tcp", c.At(1, 81), from)
					c.NoError(err)
					c.Equal(netip.AddrPortFrom(client.Address(c.V4), from.Port), answer.Client)
				}
			}
			c.NoError(c.Lab.A.Transfer(c.At(1, 81), 10<<20))
			c.Request(10, "tcp", c.At(1, 80))
			// The header is switched on and off for existing frontends.
			plain.ProxyProtocol, plain.TargetPort, proxied.ProxyProtocol, proxied.TargetPort = true, 30081, false, 30080
			c.Apply(pools, plain, proxied)
			for _, port := range []uint16{80, 81} {
				answer, err := c.Lab.A.Request("tcp", c.At(1, port), lab.From{})
				c.NoError(err)
				c.Equal(port == 80, answer.Client.Addr() == c.Lab.A.Address(c.V4), "port %d", port)
			}
			// Only the header changes, not the target port.
			plain.ProxyProtocol = false
			c.Apply(pools, plain, proxied)
			c.Error(errorOf(c.Lab.A.Request("tcp", c.At(1, 80), lab.From{})), "a server that requires a header answers without one")
			plain.ProxyProtocol = true
			c.Apply(pools, plain, proxied)
			c.Request(10, "tcp", c.At(1, 80))
			for _, s := range streams {
				c.NoError(s.Alive())
			}
		},
	}
}

func errorOf(_ lab.Answer, err error) error { return err }
