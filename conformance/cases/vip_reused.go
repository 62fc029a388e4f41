package cases

import "kubelb.k8c.io/core/model"

func vipReused() Case {
	return Case{
		Name:  "vip-reused",
		Shows: "when an address and port pass to another owner, nothing of the former one's flows reaches the new one's endpoints, and no datagram the old ones",
		Run: func(c *C) {
			old, new := c.ServeOn(0, 30080), c.ServeOn(1, 30081)
			first := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "old"), c.Frontend(model.UDP, 1, 80, 30080, "old")}
			c.Apply([]model.Pool{c.Pool("old", 0)}, first...)
			streams, flows := c.streams(5), c.flows(5)
			accepted := old.Accepted()
			second := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30081, "new"), c.Frontend(model.UDP, 1, 80, 30081, "new")}
			for i := range second {
				second[i].Owner = model.ObjectName{Namespace: "tenant-u", Name: "lb"}
				second[i].Tenant, second[i].Pool = "u", "u/new"
			}
			pool := c.Pool("new", 1)
			pool.ID, pool.Tenant = "u/new", "u"
			c.Apply(nil)
			c.Apply([]model.Pool{pool}, second...)
			for _, f := range flows {
				c.Equal(1, c.endpointOf(f), "a datagram went to the former owner")
			}
			// An old connection may live on with its old endpoint or end; it may not come to the new one.
			for _, s := range streams {
				_ = s.Alive()
			}
			c.Zero(new.Accepted())
			c.Equal(map[int]int{1: 10}, c.Ask(10, "tcp", c.At(1, 80)))
			c.Equal(accepted, old.Accepted(), "a new connection went to the former owner")
		},
	}
}
