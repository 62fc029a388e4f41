// Package maglev chooses endpoints by consistent hashing, so that every gateway chooses alike.
//
// The table is that of Maglev (Eisenbud et al., NSDI 2016, section 3.4), with weights: endpoints take turns to claim
// rows, each in an order of its own that depends only on its stable id, until all rows are claimed. Shares are even
// within one part in a hundred, and an endpoint that comes or goes moves few rows but its own.
package maglev

import (
	"cmp"
	"hash/fnv"
	"slices"

	"kubelb.k8c.io/core/model"
)

// sizes are the table sizes, prime so that every step walks through all rows. A pool takes the first that is at least
// 100 times its total weight in units of the smallest weight, so that rounding stays under one per cent.
var sizes = [...]int{1, 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071}

// Sizes returns every table size there is, in ascending order.
func Sizes() []int { return slices.Clone(sizes[:]) }

// rowsPerEndpoint keeps the rounding of a share under one per cent.
const rowsPerEndpoint = 100

// Size returns the table size for a pool: 0 for an empty one.
func Size(endpoints []model.Endpoint) int {
	switch len(endpoints) {
	case 0:
		return 0
	case 1:
		return 1
	}
	smallest, total := endpoints[0].Weight, 0
	for _, e := range endpoints {
		smallest = min(smallest, e.Weight)
		total += int(e.Weight)
	}
	need := rowsPerEndpoint * total / int(max(smallest, 1))
	for _, size := range sizes {
		if size >= need {
			return size
		}
	}
	return sizes[len(sizes)-1]
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
	seeds := make([]uint64, len(endpoints))
	for _, i := range heirs {
		seeds[i] = hash(endpoints[i].ID, "heir")
	}
	for row, owner := range table {
		if endpoints[owner].State != usable {
			table[row] = heir(uint64(row), heirs, seeds, endpoints)
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
// heavier endpoints: each unit of weight is one more draw, up to 16 units relative to the lightest.
func heir(row uint64, heirs []int, seeds []uint64, endpoints []model.Endpoint) uint32 {
	lightest := endpoints[heirs[0]].Weight
	for _, i := range heirs {
		lightest = min(lightest, endpoints[i].Weight)
	}
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
	size := Size(endpoints)
	if size == 0 {
		return nil
	}
	const free = ^uint32(0)
	table := make([]uint32, size)
	for i := range table {
		table[i] = free
	}
	claimants := newClaimants(endpoints, size)
	heaviest := slices.MaxFunc(endpoints, func(a, b model.Endpoint) int { return cmp.Compare(a.Weight, b.Weight) }).Weight
	for claimed := 0; claimed < size; {
		for i := range claimants {
			c := &claimants[i]
			// An endpoint takes a turn in a round when its weight has summed up to the heaviest one's.
			if c.credit += uint32(c.weight); c.credit < uint32(heaviest) {
				continue
			}
			c.credit -= uint32(heaviest)
			for table[c.next] != free {
				c.next = (c.next + c.skip) % size
			}
			table[c.next] = uint32(i)
			if claimed++; claimed == size {
				break
			}
		}
	}
	return table
}

type claimant struct {
	next, skip int
	weight     uint16
	credit     uint32
}

func newClaimants(endpoints []model.Endpoint, size int) []claimant {
	claimants := make([]claimant, len(endpoints))
	for i, e := range endpoints {
		claimants[i] = claimant{next: int(hash(e.ID, "offset") % uint64(size)), skip: 1, weight: max(e.Weight, 1)}
		if size > 2 {
			claimants[i].skip = int(hash(e.ID, "skip")%uint64(size-1)) + 1
		}
	}
	return claimants
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
