package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func weights() Case {
	return Case{
		Name:  "weights",
		Shows: "endpoints get new flows in proportion to their weights, and a change of weight takes effect",
		Needs: []dataplane.Feature{dataplane.Weights},
		Run: func(c *C) {
			c.Serve(30080)
			for _, weights := range [][]uint16{{1, 3}, {3, 1}, {1, 2, 4}} {
				pool, total := c.Pool("all", numbers(len(weights))...), 0
				for i, weight := range weights {
					pool.Endpoints[i].Weight = weight
					total += int(weight)
				}
				c.Apply([]model.Pool{pool}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
				const flows = 600
				c.requireBinomial(c.Request(flows, "tcp", c.At(1, 80)), flows, len(weights), func(i int) float64 { return float64(weights[i]) / float64(total) })
			}
		},
	}
}

// numbers returns the numbers from 0 to n-1.
func numbers(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
