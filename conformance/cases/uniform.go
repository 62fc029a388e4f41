package cases

import (
	"math"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func uniform() Case {
	return Case{
		Name:  "uniform",
		Shows: "new flows spread over 1, 2, 3, 7 and 100 endpoints as evenly as chance allows",
		Run: func(c *C) {
			c.Serve(30080)
			// A port that has been used before is a flow that may be remembered.
			port := uint16(10000)
			for _, n := range []int{1, 2, 3, 7, 100} {
				c.Apply([]model.Pool{c.Pool("all", numbers(n)...)}, c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"))
				for _, network := range networks {
					froms := make([]lab.From, max(300, 30*n))
					for i := range froms {
						froms[i].Port = port
						port++
					}
					answers, err := c.Lab.A.AskMany(network, c.At(1, 80), froms)
					c.NoError(err)
					c.binomial(c.Count(answers), len(froms), n, func(int) float64 { return 1 / float64(n) })
				}
			}
		},
	}
}

// binomial requires that each endpoint's count is one that chance alone brings about: within five standard deviations,
// which a good dataplane misses once in a million times.
func (c *C) binomial(counts map[int]int, flows, endpoints int, share func(endpoint int) float64) {
	for i := range endpoints {
		p := share(i)
		mean, deviation := float64(flows)*p, math.Sqrt(float64(flows)*p*(1-p))
		c.InDelta(mean, counts[i], 5*deviation+1, "endpoint %d of %d, %d flows: %v", i, endpoints, flows, counts)
	}
}
