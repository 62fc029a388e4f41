package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func direct() Case {
	return Case{
		Name:  "direct",
		Shows: "the endpoint of a direct frontend gets packets with the client's address and the VIP unchanged, while kube-proxy on its node accepts the VIP; the answer does not pass the gateway",
		Needs: []dataplane.Feature{dataplane.Direct},
		Run: func(c *C) {
			pools, frontends := c.directFrontends()
			c.Apply(pools, frontends...)
			answers, err := c.Gateway.Capture(func(p lab.Packet) bool { return p.Source.Port() == 80 })
			c.NoError(err)
			var requests []*lab.Capture
			for _, node := range c.Lab.Nodes {
				capture, err := node.Capture(func(p lab.Packet) bool { return !p.Out && p.Target.Port() == 80 })
				c.NoError(err)
				requests = append(requests, capture)
			}
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				for _, network := range networks {
					seen := map[int]int{}
					for i := range 40 {
						// Both flows begin at one port of the client, so that their answers differ in the VIP alone. The server may see
						// another port, because the node has to distinguish the flows, too.
						from := lab.From{Port: 21000 + uint16(i)}
						for vip := 1; vip <= 2; vip++ {
							answer, err := client.Request(network, c.At(vip, 80), from)
							c.NoError(err)
							c.Equal(client.Address(c.V4), answer.Client.Addr(), network)
							seen[c.Number(answer.Endpoint)]++
						}
					}
					c.Len(seen, lab.Nodes, "%s: an endpoint got no flow", network)
				}
			}
			c.Empty(answers.Close(), "an answer passed the gateway")
			for _, capture := range requests {
				for _, p := range capture.Close() {
					c.True(p.Source.Port() >= 21000 && p.Source.Port() < 21040, "%s", p)
				}
			}
			// If the gateway is also the router of the nodes, it forwards their answers.
			c.NoError(c.Lab.RouteNodesVia(0))
			for _, network := range networks {
				c.Len(c.Request(40, network, c.At(1, 80)), lab.Nodes, network)
			}
			c.NoError(c.Lab.B.Transfer(c.At(1, 80), 10<<20))
		},
	}
}

// directFrontends makes nodes accept packets for port 80 of the first two VIPs. It returns direct frontends for these ports,
// like those of a Service without NodePorts.
func (c *C) directFrontends() ([]model.Pool, []model.Frontend) {
	c.Serve(30080)
	var frontends []model.Frontend
	for vip := 1; vip <= 2; vip++ {
		c.NoError(c.Lab.ServeVIPOnNodes(c.At(vip, 80), 30080))
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			f := c.Frontend(protocol, vip, 80, 80, "all")
			f.Forwarding = model.Direct
			frontends = append(frontends, f)
		}
	}
	return []model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends
}
