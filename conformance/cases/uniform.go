package cases

import (
	"kubelb.k8c.io/conformance/lab"
)

func uniform() Case {
	return Case{
		Name:     "uniform",
		Shows:    "new flows over TCP and UDP spread over 1, 2, 3, 7, 100 and 300 endpoints as evenly as random choice does; a bias of 8 % would show",
		Untraced: true,
		Run: func(c *C) {
			c.NoError(c.Lab.MoreEndpoints(c.V4))
			t := &shareTrial{C: c, servers: c.Serve(30080), port: 2000}
			for _, n := range []int{1, 3, 7, 100, lab.MaxEndpoints} {
				t.spread(c.Pool("all", numbers(n)...))
				t.requireShares("udp", max(300, 27*n)) // of 300 endpoints, one without a flow is rare enough then
				t.requireShares("tcp", max(200, 4*n))
			}
			// With two endpoints, a bias needs the fewest flows to show.
			t.spread(c.Pool("all", 4, 5))
			t.requireShares("udp", 8000, 24000)
			t.requireShares("tcp", 3000, 12000)
		},
	}
}
