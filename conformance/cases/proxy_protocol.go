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
		Shows: "a frontend that asks for it tells its endpoints the client's address and port by a PROXY protocol header of version 2, and no other frontend does",
		Needs: []dataplane.Feature{dataplane.ProxyProtocol},
		Run: func(c *C) {
			c.Serve(30080)
			for _, node := range c.Lab.Nodes {
				server, err := node.ServeProxied(30081)
				c.NoError(err)
				c.Cleanup(func() { server.Close() })
			}
			pools := []model.Pool{c.Pool("all", 0, 1, 2, 3)}
			plain, told := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30081, "all")
			told.ProxyProtocol = true
			c.Apply(pools, plain, told)
			streams := c.streams(5)
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				for i := range 20 {
					from := lab.From{Port: 22000 + uint16(i)}
					answer, err := client.Ask("tcp", c.At(1, 81), from)
					c.NoError(err)
					c.Equal(netip.AddrPortFrom(client.Address(c.V4), from.Port), answer.Client)
				}
			}
			c.NoError(c.Lab.A.Transfer(c.At(1, 81), 10<<20))
			c.Ask(10, "tcp", c.At(1, 80))
			// Asked for, and asked for no longer, while the frontend is there.
			plain.ProxyProtocol, plain.TargetPort, told.ProxyProtocol, told.TargetPort = true, 30081, false, 30080
			c.Apply(pools, plain, told)
			for _, port := range []uint16{80, 81} {
				answer, err := c.Lab.A.Ask("tcp", c.At(1, port), lab.From{})
				c.NoError(err)
				c.Equal(port == 80, answer.Client.Addr() == c.Lab.A.Address(c.V4), "port %d", port)
			}
			// Nothing else of the frontend changes: what answers does not know what came before its first byte.
			plain.ProxyProtocol = false
			c.Apply(pools, plain, told)
			c.Error(errorOf(c.Lab.A.Ask("tcp", c.At(1, 80), lab.From{})), "a server that wants a header gets none")
			plain.ProxyProtocol = true
			c.Apply(pools, plain, told)
			c.Ask(10, "tcp", c.At(1, 80))
			for _, s := range streams {
				c.NoError(s.Alive())
			}
		},
	}
}

func errorOf(_ lab.Answer, err error) error { return err }
