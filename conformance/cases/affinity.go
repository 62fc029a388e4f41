package cases

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func affinity() Case {
	return Case{
		Name:  "affinity",
		Shows: "all flows of a client meet one endpoint until it is gone; clients spread over endpoints, and so do the flows of a frontend without affinity",
		Needs: []dataplane.Feature{dataplane.Affinity},
		Run: func(c *C) {
			c.Serve(30080)
			frontends := append(c.stickyFrontends(time.Hour), c.Frontend(model.TCP, 1, 81, 30080, "all"))
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends...)
			for _, network := range networks {
				met := c.onlyEndpoint(c.Request(40, network, c.At(1, 80)))
				left := []int{(met + 1) % 4, (met + 2) % 4}
				c.Apply([]model.Pool{c.Pool("all", left...)}, frontends...)
				c.Contains(left, c.onlyEndpoint(c.Request(40, network, c.At(1, 80))), "%s: the endpoint is gone", network)
				c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends...)
			}
			c.Greater(len(c.Request(60, "tcp", c.At(1, 81))), 2, "flows of a frontend without affinity do not spread")
			met := map[int]bool{}
			for _, client := range append([]*lab.Host{c.Lab.A, c.Lab.B}, c.Lab.Nodes[:]...) {
				answer, err := client.Request("tcp", c.At(1, 80), lab.From{})
				c.NoError(err)
				met[c.Number(answer.Endpoint)] = true
			}
			c.Greater(len(met), 1, "all six clients meet one endpoint")
		},
	}
}

// onlyEndpoint requires that one endpoint alone answered, and returns it.
func (c *C) onlyEndpoint(counts map[int]int) int {
	c.Len(counts, 1)
	for endpoint := range counts {
		return endpoint
	}
	return -1
}
