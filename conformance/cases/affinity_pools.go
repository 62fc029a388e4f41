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
		Shows: "a client keeps its endpoint when its frontend gets another pool, over a restart of the backend as well, as long as that pool has the endpoint; new clients are spread",
		Needs: []dataplane.Feature{dataplane.Affinity, dataplane.AffinityTimeout},
		Run: func(c *C) {
			c.Serve(30080)
			sticky := c.stickyFrontends(time.Hour)
			// As a Service with externalTrafficPolicy Local, whose pods move from node to node.
			pass := func(pool string, endpoints ...int) {
				for i := range sticky {
					sticky[i].Pool = model.PoolID("t/" + pool)
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
				pass(pool.name, pool.endpoints...)
				c.Equal(allAt(0, known), c.met(known), "with endpoints %v", pool.endpoints)
			}
			c.Greater(len(distinct(c.met(fresh)["tcp"])), 1, "new clients meet one endpoint")
			// The endpoint has left: each client gets another one, and keeps that.
			pass("fourth", 1, 2)
			moved := c.met(known)
			c.Len(distinct(moved["tcp"]), 2)
			c.NoError(c.Gateway.Process.Kill())
			c.Gateway.Start()
			pass("fifth", 0, 1, 2, 3)
			c.Equal(moved, c.met(known), "after a restart, with an endpoint more")
			// Two frontends of one pool know their clients apart.
			sticky = append(sticky, c.Frontend(model.TCP, 2, 80, 30080, "fifth"))
			sticky[len(sticky)-1].AffinityTimeout = time.Hour
			pass("fifth", 0, 1, 2, 3)
			c.Equal(moved, c.met(known))
		},
	}
}

// met asks once from each client, by each protocol, and returns which endpoints answer.
func (c *C) met(clients []lab.From) map[string][]int {
	out := map[string][]int{}
	for _, network := range networks {
		answers, err := c.Lab.A.AskMany(network, c.At(1, 80), clients)
		c.NoError(err)
		for _, a := range answers {
			out[network] = append(out[network], c.Number(a.Endpoint))
		}
	}
	return out
}

// allAt is what met returns where one endpoint answers.
func allAt(endpoint int, clients []lab.From) map[string][]int {
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
