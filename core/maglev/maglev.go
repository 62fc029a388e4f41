// Package maglev chooses endpoints by consistent hashing, so that all gateways choose the same endpoint for a flow.
//
// The table is that of Maglev (Eisenbud et al., NSDI 2016, section 3.4), with weights and in layers. Endpoints take turns
// to claim rows, each in an order that depends only on its stable id, until all rows of a layer are claimed. The next layer
// goes on with the turn where the last one ended. Shares are even within one part in a hundred.
//
// A flow's row is its hash modulo the table's size. All sizes but two are multiples of one another, and a layer does not
// depend on the number of layers. So a pool that outgrows its table keeps nearly all flows on their endpoints. An endpoint
// that comes or goes moves its own rows and few others. A change of an endpoint's state moves its own rows only.
package maglev

import (
	"cmp"
	"hash/fnv"
	"slices"

	"kubelb.k8c.io/core/model"
)

// The rows of a layer, in a small table and a large one: primes, so that every step walks through all rows. With more rows
// for each endpoint fewer of them move. Small pools have small layers to save the kernel's memory.
const (
	smallLayer, maxSmallLayers = 509, 8
	largeLayer, maxLargeLayers = 8191, 16
)

// rowsPerEndpoint keeps the rounding of a share under one per cent.
const rowsPerEndpoint = 100

// Sizes returns every table size there is, in ascending order.
func Sizes() []int {
	sizes := []int{1}
	for layers := 1; layers <= maxSmallLayers; layers *= 2 {
		sizes = append(sizes, smallLayer*layers)
	}
	for layers := 1; layers <= maxLargeLayers; layers *= 2 {
		sizes = append(sizes, largeLayer*layers)
	}
	return sizes
}

// Layers returns the number of layers of a table of this size, a power of two.
func Layers(size int) int {
	for _, layer := range []int{smallLayer, largeLayer} {
		if size%layer == 0 {
			return size / layer
		}
	}
	return 1
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
	need, limit := rowsPerEndpoint*total/int(max(smallest, 1)), maxSmallLayers
	if layer = smallLayer; need > layer*limit {
		layer, limit = largeLayer, maxLargeLayers
	}
	for layers = 1; layers < limit && layer*layers < need; {
		layers *= 2
	}
	return layer, layers
}

// Table returns for each row the index of its endpoint in endpoints. It returns nil when endpoints is empty.
//
// Each row of an endpoint that is not active goes to an active endpoint, chosen for that row. So two gateways that disagree
// about an endpoint's health differ in that endpoint's rows only. If no endpoint is active, unhealthy endpoints keep their
// rows, and if there are none of these, draining ones: it is better to try an endpoint than to refuse the connection.
//
// Endpoints must be in canonical order, with unique ids.
func Table(endpoints []model.Endpoint) []uint32 {
	table := claimRows(endpoints)
	usable := usableState(endpoints)
	var candidates []int
	for i, e := range endpoints {
		if e.State == usable {
			candidates = append(candidates, i)
		}
	}
	if len(candidates) == len(endpoints) {
		return table
	}
	lightest := slices.MinFunc(endpoints, byWeight).Weight
	seeds := make([]uint64, len(endpoints))
	for _, i := range candidates {
		seeds[i] = hash(endpoints[i].ID, "heir") // the salt is part of the choice: gateways of all versions have to use the same
	}
	for row, owner := range table {
		if endpoints[owner].State != usable {
			table[row] = replacement(uint64(row), candidates, seeds, lightest, endpoints)
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

// replacement picks the candidate with the highest score for the row (rendezvous hashing). A heavier endpoint has more
// draws: one for each unit of weight, up to 16, relative to the lightest of all endpoints. That one is chosen among all
// endpoints, so that the draws of one endpoint do not depend on the health of another.
func replacement(row uint64, candidates []int, seeds []uint64, lightest uint16, endpoints []model.Endpoint) uint32 {
	best, bestScore := candidates[0], uint64(0)
	for _, i := range candidates {
		draws := min(uint64(endpoints[i].Weight)/uint64(max(lightest, 1)), 16)
		for draw := range max(draws, 1) {
			if score := mix(seeds[i] ^ mix(row<<8|draw)); score > bestScore {
				best, bestScore = i, score
			}
		}
	}
	return uint32(best)
}

// claimRows populates the Maglev table with all endpoints, whatever their state.
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

// claimant is an endpoint and the order in which it claims rows.
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

// turns decides which endpoint claims the next row. In each round an endpoint gets its weight as credit. It has a turn when
// its credit reaches the weight of the heaviest endpoint.
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

// hash mixes the output of FNV-1a, whose high bits barely depend on the last bytes of a short input.
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
