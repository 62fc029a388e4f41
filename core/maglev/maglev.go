// Package maglev chooses endpoints by consistent hashing, so that every gateway chooses alike.
//
// The table is that of Maglev (Eisenbud et al., NSDI 2016, section 3.4), with weights and in layers: endpoints take turns
// to claim rows, each in an order of its own that depends only on its stable id, until all rows of a layer are claimed; the
// next layer goes on with the turn where the last one ended. Shares are even within one part in a hundred.
//
// A flow's row is its hash modulo the table's size. All sizes but two are multiples of one another, and a layer does not
// depend on their number, so that a pool which outgrows its table keeps nearly all flows where they are. An endpoint that
// comes or goes moves few rows but its own; one that changes its state moves its own only.
package maglev

import (
	"cmp"
	"hash/fnv"
	"slices"

	"kubelb.k8c.io/core/model"
)

// The rows of a layer, in a small table and a large one: primes, so that every step walks through all rows. More rows for
// each endpoint mean fewer that move; the kernel's memory is why not all pools have large layers.
const (
	smallLayer, mostSmallLayers = 509, 8
	largeLayer, mostLargeLayers = 8191, 16
)

// rowsPerEndpoint keeps the rounding of a share under one per cent.
const rowsPerEndpoint = 100

// Sizes returns every table size there is, in ascending order.
func Sizes() []int {
	sizes := []int{1}
	for layers := 1; layers <= mostSmallLayers; layers *= 2 {
		sizes = append(sizes, smallLayer*layers)
	}
	for layers := 1; layers <= mostLargeLayers; layers *= 2 {
		sizes = append(sizes, largeLayer*layers)
	}
	return sizes
}

// Size returns the table size for a pool: 0 for an empty one.
func Size(endpoints []model.Endpoint) int {
	layer, layers := shape(endpoints)
	return layer * layers
}

// shape returns the rows of a layer and the number of layers: the first that make at least 100 rows for each unit of the
// smallest weight, so that rounding stays under one per cent.
func shape(endpoints []model.Endpoint) (layer, layers int) {
	switch len(endpoints) {
	case 0:
		return 0, 0
	case 1:
		return 1, 1
	}
	smallest, total := endpoints[0].Weight, 0
	for _, e := range endpoints {
		smallest = min(smallest, e.Weight)
		total += int(e.Weight)
	}
	need, most := rowsPerEndpoint*total/int(max(smallest, 1)), mostSmallLayers
	if layer = smallLayer; need > layer*most {
		layer, most = largeLayer, mostLargeLayers
	}
	for layers = 1; layers < most && layer*layers < need; {
		layers *= 2
	}
	return layer, layers
}

// Table returns, for each row, the position in endpoints of the one that takes it; nil when endpoints is empty.
//
// The rows of an endpoint that is not active fall, each by itself, to an active one. So two gateways that disagree about
// an endpoint's health differ in that endpoint's rows only. When none is active, unhealthy endpoints keep their rows,
// then draining ones: to try is better than to refuse.
//
// Endpoints must be in canonical order, with unique ids.
func Table(endpoints []model.Endpoint) []uint32 {
	table := claimRows(endpoints)
	usable := usableState(endpoints)
	var heirs []int
	for i, e := range endpoints {
		if e.State == usable {
			heirs = append(heirs, i)
		}
	}
	if len(heirs) == len(endpoints) {
		return table
	}
	lightest := slices.MinFunc(endpoints, byWeight).Weight
	seeds := make([]uint64, len(endpoints))
	for _, i := range heirs {
		seeds[i] = hash(endpoints[i].ID, "heir")
	}
	for row, owner := range table {
		if endpoints[owner].State != usable {
			table[row] = heir(uint64(row), heirs, seeds, lightest, endpoints)
		}
	}
	return table
}

// usableState is the best state that any endpoint has.
func usableState(endpoints []model.Endpoint) model.EndpointState {
	for _, state := range []model.EndpointState{model.Active, model.Unhealthy} {
		if slices.ContainsFunc(endpoints, func(e model.Endpoint) bool { return e.State == state }) {
			return state
		}
	}
	return model.Draining
}

// heir picks the endpoint with the highest score for the row (rendezvous hashing), weighted by lifting the scores of
// heavier endpoints: each unit of weight is one more draw, up to 16 units relative to the lightest of all endpoints,
// heirs or not, so that the draws of one do not depend on the health of another.
func heir(row uint64, heirs []int, seeds []uint64, lightest uint16, endpoints []model.Endpoint) uint32 {
	best, bestScore := heirs[0], uint64(0)
	for _, i := range heirs {
		draws := min(uint64(endpoints[i].Weight)/uint64(max(lightest, 1)), 16)
		for draw := range max(draws, 1) {
			if score := mix(seeds[i] ^ mix(row<<8|draw)); score > bestScore {
				best, bestScore = i, score
			}
		}
	}
	return uint32(best)
}

// claimRows is the Maglev population over all endpoints, whatever their state.
func claimRows(endpoints []model.Endpoint) []uint32 {
	rows, layers := shape(endpoints)
	if rows == 0 {
		return nil
	}
	const free = ^uint32(0)
	table := slices.Repeat([]uint32{free}, rows*layers)
	claimants := newClaimants(endpoints, rows)
	turn := turns{claimants: claimants, heaviest: slices.MaxFunc(endpoints, byWeight).Weight}
	for layer := range slices.Chunk(table, rows) {
		for i := range claimants {
			claimants[i].next = claimants[i].offset
		}
		for range rows {
			i := turn.next()
			c := &claimants[i]
			for layer[c.next] != free {
				c.next = (c.next + c.skip) % rows
			}
			layer[c.next] = uint32(i)
		}
	}
	return table
}

func byWeight(a, b model.Endpoint) int { return cmp.Compare(a.Weight, b.Weight) }

// claimant is an endpoint with its order of rows.
type claimant struct {
	offset, skip int
	next         int
	weight       uint16
	credit       uint32
}

func newClaimants(endpoints []model.Endpoint, rows int) []claimant {
	claimants := make([]claimant, len(endpoints))
	for i, e := range endpoints {
		claimants[i] = claimant{offset: int(hash(e.ID, "offset") % uint64(rows)), skip: 1, weight: max(e.Weight, 1)}
		if rows > 2 {
			claimants[i].skip = int(hash(e.ID, "skip")%uint64(rows-1)) + 1
		}
	}
	return claimants
}

// turns says whose turn it is. An endpoint takes one in a round when its weight has summed up to the heaviest one's.
type turns struct {
	claimants []claimant
	heaviest  uint16
	at        int
}

func (t *turns) next() int {
	for {
		i := t.at
		t.at = (t.at + 1) % len(t.claimants)
		c := &t.claimants[i]
		if c.credit += uint32(c.weight); c.credit >= uint32(t.heaviest) {
			c.credit -= uint32(t.heaviest)
			return i
		}
	}
}

// hash spreads FNV-1a's output, whose high bits barely depend on a short input's last bytes.
func hash(id, salt string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(salt))
	h.Write([]byte{0})
	h.Write([]byte(id))
	return mix(h.Sum64())
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
