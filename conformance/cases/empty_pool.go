package cases

import "kubelb.k8c.io/core/model"

func emptyPool() Case {
	return Case{
		Name:  "empty-pool",
		Shows: "while a pool is empty, its frontends refuse TCP within a second and do not answer UDP; they serve as soon as the pool has an endpoint",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			for range 3 {
				c.Apply([]model.Pool{c.Pool("all")}, frontends...)
				for _, network := range networks {
					c.MustRefuse(network, c.At(1, 80))
				}
				c.Apply([]model.Pool{c.Pool("all", 2)}, frontends...)
				for _, network := range networks {
					c.Equal(map[int]int{2: 3}, c.Request(3, network, c.At(1, 80)), network)
				}
			}
		},
	}
}
