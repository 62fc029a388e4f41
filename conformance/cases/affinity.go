package cases

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func affinity() Case {
	return Case{
		Name:  "affinity",
		Shows: "a client keeps its endpoint, whatever joins the pool, until the timeout has passed without a new flow or the endpoint is gone",
		Needs: []dataplane.Feature{dataplane.Affinity},
		Run: func(c *C) {
			c.Serve(30080)
			var sticky []model.Frontend
			for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
				f := c.Frontend(protocol, 1, 80, 30080, "all")
				f.AffinityTimeout = 2 * time.Second
				sticky = append(sticky, f)
			}
			sticky = append(sticky, c.Frontend(model.TCP, 1, 81, 30080, "all"))
			// Which endpoint the client's address meets by itself is the backend's choice; it shall have to leave that.
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, sticky...)
			byHash := c.only(c.Ask(5, "tcp", c.At(1, 80)))
			other := (byHash + 1) % 4
			for _, network := range networks {
				time.Sleep(3 * time.Second)
				c.Apply([]model.Pool{c.Pool("all", other)}, sticky...)
				c.Equal(other, c.only(c.Ask(5, network, c.At(1, 80))))
				c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, sticky...)
				for range 4 {
					time.Sleep(time.Second)
					c.Equal(other, c.only(c.Ask(5, network, c.At(1, 80))), "%s: each new flow begins the timeout anew", network)
				}
				time.Sleep(3 * time.Second)
				c.NotEqual(other, c.only(c.Ask(5, network, c.At(1, 80))), "%s: the timeout has passed", network)
			}
			c.Greater(len(c.Ask(60, "tcp", c.At(1, 81))), 2, "a frontend without affinity spreads")
			c.Apply([]model.Pool{c.Pool("all", other)}, sticky...)
			for _, network := range networks {
				c.Equal(other, c.only(c.Ask(5, network, c.At(1, 80))), "%s: the endpoint is gone", network)
			}
		},
	}
}

// only requires that one endpoint answered.
func (c *C) only(counts map[int]int) int {
	c.Len(counts, 1)
	for endpoint := range counts {
		return endpoint
	}
	return -1
}
