package cases

import (
	"math"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func uniform() Case {
	return Case{
		Name:  "uniform",
		Shows: "new flows spread over 1, 2, 3, 7 and 100 endpoints as evenly as random choice does",
		Run: func(c *C) {
			c.Serve(30080)
			// Each flow has a new port, because a backend may remember a flow from a former one.
			port := uint16(10000)
			for _, n := range []int{1, 2, 3, 7, 100} {
				c.Apply([]model.Pool{c.Pool("all", numbers(n)...)}, c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"))
				for _, network := range networks {
					froms := make([]lab.From, max(300, 30*n))
					for i := range froms {
						froms[i].Port = port
						port++
					}
					answers, err := c.Lab.A.RequestFromEach(network, c.At(1, 80), froms)
					c.NoError(err)
					c.requireBinomial(c.Count(answers), len(froms), n, func(int) float64 { return 1 / float64(n) })
				}
			}
		},
	}
}

// requireBinomial requires that the count of each endpoint is within five standard deviations of its share. A good dataplane misses
// that once in a million times.
func (c *C) requireBinomial(counts map[int]int, flows, endpoints int, share func(endpoint int) float64) {
	for i := range endpoints {
		p := share(i)
		mean, deviation := float64(flows)*p, math.Sqrt(float64(flows)*p*(1-p))
		c.InDelta(mean, counts[i], 5*deviation+1, "endpoint %d of %d, %d flows: %v", i, endpoints, flows, counts)
	}
}
