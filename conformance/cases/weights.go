package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func weights() Case {
	return Case{
		Name:     "weights",
		Shows:    "endpoints get new flows over TCP and UDP in proportion to their weights, from 1:3 to 256:1 and 1:65535, and a change of weight takes effect",
		Needs:    []dataplane.Feature{dataplane.Weights},
		Untraced: true,
		Run: func(c *C) {
			t := &shareTrial{C: c, servers: c.Serve(30080), port: 2000}
			for _, weights := range [][]uint16{{1, 3}, {3, 1}, {1, 2, 4}, {100, 10, 1}} {
				t.spread(t.weighted(weights))
				t.requireShares("udp", 600)
				t.requireShares("tcp", 200)
			}
			// The lighter endpoint gets one in 257: 31 of so many flows.
			for i, weights := range [][]uint16{{256, 1}, {1, 256}} {
				t.spread(t.weighted(weights))
				t.requireShares("udp", 8000/(1+7*i))
				t.requireShares("tcp", 200)
			}
			t.spread(t.weighted([]uint16{1, 65535}))
			t.requireShares("tcp", 100)
		},
	}
}

// weighted returns a pool of endpoints with these weights.
func (c *C) weighted(weights []uint16) model.Pool {
	pool := c.Pool("all", numbers(len(weights))...)
	for i, weight := range weights {
		pool.Endpoints[i].Weight = weight
	}
	return pool
}

// numbers returns the numbers from 0 to n-1.
func numbers(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
