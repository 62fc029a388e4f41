package cases

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func affinityPools() Case {
	return Case{
		Name:  "affinity-pools",
		Shows: "a client keeps its endpoint when its frontend gets another pool that has the endpoint, also over a restart of the backend; new clients spread over endpoints",
		Needs: []dataplane.Feature{dataplane.Affinity, dataplane.AffinityTimeout},
		Run: func(c *C) {
			c.Serve(30080)
			sticky := c.stickyFrontends(time.Hour)
			// This is what happens with externalTrafficPolicy Local while pods move between nodes.
			usePool := func(pool string, endpoints ...int) {
				for i := range sticky {
					sticky[i].Pool = c.PoolID(tenant, pool)
				}
				c.Apply([]model.Pool{c.Pool(pool, endpoints...)}, sticky...)
			}
			all, err := c.Lab.Clients(c.V4, 40)
			c.NoError(err)
			known, fresh := all[:30], all[30:]
			for _, pool := range []struct {
				name      string
				endpoints []int
			}{{"first", []int{0}}, {"second", []int{0, 1}}, {"third", []int{0, 1, 2, 3}}} {
				usePool(pool.name, pool.endpoints...)
				c.Equal(sameEndpoint(0, known), c.endpointsMet(known), "with endpoints %v", pool.endpoints)
			}
			c.Greater(len(distinct(c.endpointsMet(fresh)["tcp"])), 1, "all new clients meet one endpoint")
			// The endpoint is gone: each client gets another endpoint, and keeps it.
			usePool("fourth", 1, 2)
			moved := c.endpointsMet(known)
			c.Len(distinct(moved["tcp"]), 2)
			c.NoError(c.Gateway.Process.Kill())
			c.Gateway.Start()
			usePool("fifth", 0, 1, 2, 3)
			c.Equal(moved, c.endpointsMet(known), "after a restart, with one more endpoint")
			// Two frontends of one pool have separate clients.
			sticky = append(sticky, c.Frontend(model.TCP, 2, 80, 30080, "fifth"))
			sticky[len(sticky)-1].AffinityTimeout = time.Hour
			usePool("fifth", 0, 1, 2, 3)
			c.Equal(moved, c.endpointsMet(known))
		},
	}
}

// endpointsMet sends one request from each client over TCP and UDP, and returns the endpoints that answer.
func (c *C) endpointsMet(clients []lab.From) map[string][]int {
	out := map[string][]int{}
	for _, network := range networks {
		answers, err := c.Lab.A.RequestFromEach(network, c.At(1, 80), clients)
		c.NoError(err)
		for _, a := range answers {
			out[network] = append(out[network], c.Number(a.Endpoint))
		}
	}
	return out
}

// sameEndpoint returns what met returns if one endpoint answers all clients.
func sameEndpoint(endpoint int, clients []lab.From) map[string][]int {
	out := map[string][]int{}
	for _, network := range networks {
		for range clients {
			out[network] = append(out[network], endpoint)
		}
	}
	return out
}

func distinct(endpoints []int) map[int]bool {
	out := map[int]bool{}
	for _, e := range endpoints {
		out[e] = true
	}
	return out
}
