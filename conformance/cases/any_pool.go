package cases

import "kubelb.k8c.io/core/model"

func anyPool() Case {
	return Case{
		Name:      "any-pool",
		OneFamily: true,
		Shows: "a backend takes pools with weights and with endpoints in any state, whatever features it has; all active endpoints get new flows, and others get none " +
			"beside them; if none is active, the unhealthy ones get new flows, else the draining ones",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			for _, step := range []struct {
				states []model.EndpointState
				usable []int
			}{
				{[]model.EndpointState{model.Active, model.Active, model.Draining, model.Unhealthy}, []int{0, 1}},
				{[]model.EndpointState{model.Draining, model.Unhealthy, model.Unhealthy, model.Draining}, []int{1, 2}},
				{[]model.EndpointState{model.Draining, model.Draining}, []int{0, 1}},
			} {
				pool := c.Pool("all", numbers(len(step.states))...)
				for i, state := range step.states {
					pool.Endpoints[i].State, pool.Endpoints[i].Weight = state, uint16(1+2*(i%2))
				}
				c.Apply([]model.Pool{pool}, frontends...)
				for _, network := range networks {
					// An endpoint with a share of a quarter gets none of a hundred flows once in 10^12 runs.
					var met []int
					for endpoint := range c.Request(100, network, c.At(1, 80)) {
						met = append(met, endpoint)
					}
					c.ElementsMatch(step.usable, met, "%s to endpoints %v", network, step.states)
				}
			}
		},
	}
}
