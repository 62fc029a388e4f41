package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func poolChange() Case {
	return Case{
		Name:  "pool-change-moves-few",
		Shows: "when an endpoint leaves, its flows move to other endpoints and hardly any other flow moves; when it returns, its flows return; an endpoint that joins takes its share, and hardly any other flow moves",
		Run: func(c *C) {
			c.Serve(30080)
			frontend := c.Frontend(model.TCP, 1, 80, 30080, "all")
			c.Apply([]model.Pool{c.Pool("all", numbers(10)...)}, frontend)
			before := c.endpointsOf(400)
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 4, 5, 6, 7, 8, 9)}, frontend)
			after := c.endpointsOf(400)
			moved := 0
			for i := range before {
				c.NotEqual(3, after[i], "a flow meets an endpoint that is gone")
				if before[i] != 3 && before[i] != after[i] {
					moved++
				}
			}
			// Ideally none moves. A hash modulo the number of endpoints would move nine in ten.
			c.Less(moved, 400/10, "too many flows of other endpoints moved")
			c.Apply([]model.Pool{c.Pool("all", numbers(10)...)}, frontend)
			c.Equal(before, c.endpointsOf(400))
			// With a sixth endpoint a table may get larger. A flow keeps its endpoint then, too, or goes to the new one.
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3, 4)}, frontend)
			before = c.endpointsOf(200)
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3, 4, 5)}, frontend)
			moved = 0
			for i, endpoint := range c.endpointsOf(200) {
				if endpoint != before[i] && endpoint != 5 {
					moved++
				}
			}
			c.Less(moved, 200/10, "too many flows moved between the endpoints that were there before")
		},
	}
}

// endpointsOf makes TCP flows to port 80 of the first address, always from the same ports, and returns the endpoint of each
// flow.
func (c *C) endpointsOf(flows int) []int {
	froms := make([]lab.From, flows)
	for i := range froms {
		froms[i].Port = uint16(10000 + i)
	}
	answers, err := c.Lab.A.RequestFromEach("tcp", c.At(1, 80), froms)
	c.NoError(err)
	out := make([]int, flows)
	for i, a := range answers {
		out[i] = c.Number(a.Endpoint)
	}
	return out
}
