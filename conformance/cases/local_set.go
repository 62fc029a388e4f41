package cases

import (
	"slices"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func localSet() Case {
	return Case{
		Name:  "local-set",
		Shows: "with externalTrafficPolicy Local, packets reach exactly the nodes of the set, also while the set changes",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "local"), c.Frontend(model.UDP, 1, 80, 30080, "local")}
			for _, set := range [][]int{{0}, {1, 2}, {3}, {0, 3}, {1}, {0, 1, 2, 3}, {2}} {
				c.Apply([]model.Pool{c.Pool("local", set...)}, frontends...)
				c.requireReachOnly(set, func() {
					for _, network := range networks {
						met := c.Request(250, network, c.At(1, 80))
						c.Len(met, len(set), "endpoints %v of the set %v answer", met, set)
					}
				})
			}
		},
	}
}

// requireReachOnly requires that no packet for the target port comes to a node outside the set while f runs.
func (c *C) requireReachOnly(set []int, f func()) {
	captures := map[int]*lab.Capture{}
	for i, node := range c.Lab.Nodes {
		if slices.Contains(set, i) {
			continue
		}
		capture, err := node.Capture(func(p lab.Packet) bool { return !p.Out && p.Target.Port() == 30080 })
		c.NoError(err)
		captures[i] = capture
	}
	f()
	for i, capture := range captures {
		c.Empty(capture.Close(), "node %d, which is not in the set %v, gets packets", i, set)
	}
}
