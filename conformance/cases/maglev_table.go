package cases

import (
	"fmt"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

func maglevTable() Case {
	return Case{
		Name: "maglev-table",
		Shows: "each new flow over TCP and UDP meets the endpoint in its row of the table of core/maglev, on each gateway: for pools of 2 to 150 endpoints, with ids that are no addresses, " +
			"weights up to 256:1, and endpoints that are draining or unhealthy",
		Needs:    []dataplane.Feature{dataplane.MaglevTable, dataplane.Weights, dataplane.Drain},
		Gateways: 2,
		Untraced: true,
		Run: func(c *C) {
			c.NoError(c.Lab.MoreEndpoints(c.V4))
			c.Serve(30080)
			flows := newRowFlows()
			for i, pool := range c.tablePools() {
				c.Apply([]model.Pool{pool}, c.Frontend(model.TCP, 1, 80, 30080, "table"), c.Frontend(model.UDP, 1, 80, 30080, "table"))
				// By the other gateway from the middle of the small tables to the middle of the large ones: a flow's row is the same there.
				c.NoError(c.Lab.RouteVIPs(map[bool]int{true: 1}[i >= 5 && i < 12]))
				c.requireRows(flows, pool)
			}
		},
	}
}

// tablePools returns pools whose tables have different sizes. No pool has addresses of the one before, so that UDP flows leave their endpoints.
func (c *C) tablePools() []model.Pool {
	pool := func(first, n int, id func(i int) string, edit func(i int, e *model.Endpoint)) model.Pool {
		p := model.Pool{ID: c.PoolID(tenant, "table"), Tenant: tenant}
		for i := range n {
			e := model.Endpoint{ID: id(i), Address: lab.EndpointAddress(c.V4, first+i), Weight: 1}
			edit(i, &e)
			p.Endpoints = append(p.Endpoints, e)
		}
		return model.Snapshot{Pools: []model.Pool{p}}.Canonical().Pools[0]
	}
	address := func(first int) func(int) string {
		return func(i int) string { return lab.EndpointAddress(c.V4, first+i).String() }
	}
	named := func(format string) func(int) string { return func(i int) string { return fmt.Sprintf(format, i) } }
	long := func(i int) string { return strings.Repeat("x", model.MaxEndpointID-3) + fmt.Sprintf("%03d", i) }
	plain := func(int, *model.Endpoint) {}
	weighted := func(weights ...uint16) func(int, *model.Endpoint) {
		return func(i int, e *model.Endpoint) { e.Weight = weights[i%len(weights)] }
	}
	inState := func(states ...model.EndpointState) func(int, *model.Endpoint) {
		return func(i int, e *model.Endpoint) { e.State = states[i%len(states)] }
	}
	const a, d, u = model.Active, model.Draining, model.Unhealthy
	return []model.Pool{
		pool(0, 5, address(0), plain),
		pool(10, 5, named("node-%d"), plain),
		pool(0, 7, named("node-%d.example.com"), weighted(1, 2, 3, 4, 5)),
		pool(10, 20, named("6f1c2b7e-0000-4000-8000-%012d"), plain),
		pool(40, 40, long, plain),
		pool(0, 8, named("Node %d äöü"), inState(a, u, a, d)),
		pool(10, 6, named("n%d"), inState(u, d)),
		pool(0, 4, named("n%d"), inState(d)),
		pool(10, 3, named("-%d-"), weighted(100, 108)),
		// From here on the tables are large.
		pool(150, 140, named("node-%d"), plain),
		pool(0, 150, named("%d"), plain),
		pool(150, 120, named("z%d"), inState(a, a, u)),
		pool(0, 9, named("a%d"), weighted(1, 256)),
		pool(150, 2, named("b%d"), weighted(256, 1)),
	}
}

// rowFlows are flows from certain ports. The rows of a flow are unknown, because each dataplane has its own hash, but they are the same in all tables:
// the hash modulo the table's size. So each pool leaves fewer hashes for a flow, in the end none if the dataplane has another table.
type rowFlows struct {
	network string
	froms   []lab.From
	// small and large have for each flow the hashes that are possible, modulo the size of the largest small table and of the largest one.
	small, large [][]int
}

func newRowFlows() []*rowFlows {
	sizes := maglev.Sizes()
	largest := func(multipleOf int) (size int) {
		for _, s := range sizes {
			if s%multipleOf == 0 {
				size = s
			}
		}
		return size
	}
	small, large := numbers(largest(smallLayer)), numbers(largest(largeLayer))
	flows := func(network string, n int) *rowFlows {
		out := &rowFlows{network: network}
		for i := range n {
			out.froms, out.small, out.large = append(out.froms, from(uint16(10000+i))), append(out.small, small), append(out.large, large)
		}
		return out
	}
	return []*rowFlows{flows("tcp", 30), flows("udp", 120)}
}

// The layers of the tables of core/maglev. All sizes but 1 are multiples of one of them.
const smallLayer, largeLayer = 509, 8191

// requireRows requires that all flows meet endpoints that the table allows.
func (c *C) requireRows(all []*rowFlows, pool model.Pool) {
	table := maglev.Table(pool.Endpoints)
	for _, flows := range all {
		answers, err := c.Lab.A.RequestFromEach(flows.network, c.At(1, 80), flows.froms)
		c.NoError(err)
		possible := flows.small
		if len(table)%largeLayer == 0 {
			possible = flows.large
		}
		for i, answer := range answers {
			var left []int
			for _, hash := range possible[i] {
				if pool.Endpoints[table[hash%len(table)]].Address == answer.Endpoint {
					left = append(left, hash)
				}
			}
			c.NotEmpty(left, "%s from port %d meets endpoint %d of %d, with a table of %d rows: no row fits all endpoints that this flow has met", flows.network, flows.froms[i].Port,
				c.Number(answer.Endpoint), len(pool.Endpoints), len(table))
			possible[i] = left
		}
	}
}
