package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func direct() Case {
	return Case{
		Name:  "direct",
		Shows: "a direct frontend's endpoint, on whose node kube-proxy takes the VIP for its own, sees client and VIP as they are; the answer goes straight back",
		Needs: []dataplane.Feature{dataplane.Direct},
		Run: func(c *C) {
			pools, frontends := c.directFrontends()
			c.Apply(pools, frontends...)
			answers, err := c.Gateway.Capture(func(p lab.Packet) bool { return p.Source.Port() == 80 })
			c.NoError(err)
			var questions []*lab.Capture
			for _, node := range c.Lab.Nodes {
				capture, err := node.Capture(func(p lab.Packet) bool { return !p.Out && p.Target.Port() == 80 })
				c.NoError(err)
				questions = append(questions, capture)
			}
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				for _, network := range networks {
					seen := map[int]int{}
					for i := range 40 {
						// To both VIPs from one port: on the way back the two flows differ in nothing but the VIP. (The server may
						// see another port, since the node has to tell them apart, too.)
						from := lab.From{Port: 21000 + uint16(i)}
						for vip := 1; vip <= 2; vip++ {
							answer, err := client.Ask(network, c.At(vip, 80), from)
							c.NoError(err)
							c.Equal(client.Address(c.V4), answer.Client.Addr(), network)
							seen[c.Number(answer.Endpoint)]++
						}
					}
					c.Len(seen, lab.Nodes, "%s: every endpoint has its share", network)
				}
			}
			c.Empty(answers.Close(), "an answer passed the gateway")
			for _, capture := range questions {
				for _, p := range capture.Close() {
					c.True(p.Source.Port() >= 21000 && p.Source.Port() < 21040, "%s", p)
				}
			}
			// Where the gateway is the nodes' router, too, it passes their answers on.
			c.NoError(c.Lab.NodesAnswerBy(0))
			for _, network := range networks {
				c.Len(c.Ask(40, network, c.At(1, 80)), lab.Nodes, network)
			}
			c.NoError(c.Lab.B.Transfer(c.At(1, 80), 10<<20))
		},
	}
}

// directFrontends has nodes take what comes for port 80 of the first two VIPs, and returns direct frontends for them, as of a Service
// without NodePorts.
func (c *C) directFrontends() ([]model.Pool, []model.Frontend) {
	c.Serve(30080)
	var frontends []model.Frontend
	for vip := 1; vip <= 2; vip++ {
		c.NoError(c.Lab.NodesTake(c.At(vip, 80), 30080))
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			f := c.Frontend(protocol, vip, 80, 80, "all")
			f.Forwarding = model.Direct
			frontends = append(frontends, f)
		}
	}
	return []model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends
}
