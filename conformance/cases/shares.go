package cases

import (
	"math"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// shareTrial makes many new flows, and compares what each endpoint got with its share.
type shareTrial struct {
	*C
	servers []*lab.Server
	pool    model.Pool
	// port is that of the frontends. It is different for each pool, because a backend may remember a flow from a former one.
	port uint16
	// from is the client's next port with this pool.
	from int
}

// firstShareFrom is the client's first port with each pool.
const firstShareFrom = 5000

// spread serves the pool, which is t/all, by new frontends.
func (t *shareTrial) spread(pool model.Pool) {
	t.pool, t.port, t.from = pool, t.port+1, firstShareFrom
	t.Apply([]model.Pool{pool}, t.Frontend(model.TCP, 1, t.port, 30080, "all"), t.Frontend(model.UDP, 1, t.port, 30080, "all"))
}

// meet makes n new flows, and returns how many of them each endpoint got, by its number.
func (t *shareTrial) meet(network string, n int) map[int]int {
	counts, err := t.Lab.A.CountFlows(network, t.At(1, t.port), t.from, n, t.servers)
	t.NoError(err)
	t.from += n
	out := map[int]int{}
	for address, count := range counts {
		if count > 0 {
			out[t.Number(address)] = count
		}
	}
	return out
}

// requireShares requires that each endpoint gets new flows in proportion to its weight. It makes as many flows as the first number says. While the counts
// are suspicious, it makes more, up to the next number in all: a good dataplane seldom needs them, and a wrong one fails in the end.
func (t *shareTrial) requireShares(network string, flows ...int) {
	counts, made := map[int]int{}, 0
	for stage, all := range flows {
		for endpoint, n := range t.meet(network, all-made) {
			counts[endpoint] += n
		}
		made = total(counts) // a datagram may be lost on a busy machine
		t.GreaterOrEqual(made, all-all/100, "flows that met an endpoint, of %d", all)
		if stage < len(flows)-1 && !t.suspicious(counts, made) {
			return
		}
	}
	t.requireBinomial(counts, made, t.shares())
}

// shares returns the share of each endpoint, by its number.
func (t *shareTrial) shares() map[int]float64 {
	sum := 0.0
	for _, e := range t.pool.Endpoints {
		sum += float64(e.Weight)
	}
	out := map[int]float64{}
	for _, e := range t.pool.Endpoints {
		out[t.Number(e.Address)] = float64(e.Weight) / sum
	}
	return out
}

// suspicious reports whether a count differs from the expected one by more than 1.5 standard deviations.
func (t *shareTrial) suspicious(counts map[int]int, flows int) bool {
	for endpoint, p := range t.shares() {
		mean := float64(flows) * p
		if math.Abs(float64(counts[endpoint])-mean) > 1.5*math.Sqrt(mean*(1-p)) {
			return true
		}
	}
	return false
}

// oneIn bounds how often requireBinomial fails by chance: less than once in that many calls.
const oneIn = 1e7

// requireBinomial requires that each endpoint's count is one that random choice with these shares makes.
func (c *C) requireBinomial(counts map[int]int, flows int, shares map[int]float64) {
	for endpoint := range counts {
		c.Contains(shares, endpoint, "an endpoint that is not in the pool answers: %v", counts)
	}
	for endpoint, p := range shares {
		rarity := float64(flows) * divergence(float64(counts[endpoint])/float64(flows), p)
		c.Less(rarity, math.Log(2*oneIn*float64(len(shares))), "endpoint %d got %d of %d flows, its share is %.2f: %v", endpoint, counts[endpoint], flows, float64(flows)*p, counts)
	}
}

// divergence is the relative entropy of two coins, the first of which shows heads in the part a, and the other in the part p. The chance that n flips of the
// other one look at least as rare as the first is at most 2*exp(-n*divergence) (Chernoff).
func divergence(a, p float64) float64 {
	term := func(x, y float64) float64 {
		if x == 0 {
			return 0
		}
		return x * math.Log(x/y)
	}
	if p == 1 {
		return term(1-a, 1e-300) // any other endpoint is impossible
	}
	return term(a, p) + term(1-a, 1-p)
}
