package envoy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/cespare/xxhash/v2"

	"kubelb.k8c.io/core/model"
)

// maglev is the hash table by which Envoy's Maglev policy chooses an endpoint ("Maglev: A Fast and Reliable Software Network Load Balancer", section
// 3.4, with weights). It has the same rows as Envoy's. So a client that is not stored gets the same endpoint from the plugin, from Envoy without the
// plugin, and on each gateway.
type maglev struct {
	endpoints []netip.Addr
	rows      []uint16 // indexes of endpoints
}

// maglevEndpoint is an endpoint while the table is filled.
type maglevEndpoint struct {
	name    string
	address netip.Addr
	// offset and skip give its permutation of the rows; next is how many rows of the permutation it has tried.
	offset, skip, next uint64
	// weight is its share of the sum of all weights. It takes a row in each round in which round * weight reaches target.
	weight, target float64
}

// newMaglev fills a table. rows is a prime number; there is at least one endpoint.
func newMaglev(endpoints []model.Endpoint, rows uint64) maglev {
	all, maxWeight := maglevEndpoints(endpoints, rows)
	m := maglev{rows: make([]uint16, rows)}
	taken := make([]bool, rows)
	for _, e := range all {
		m.endpoints = append(m.endpoints, e.address)
	}
	for filled, round := uint64(0), 1.0; filled < rows; round++ {
		for i := range all {
			e := &all[i]
			if filled == rows || round*e.weight < e.target {
				continue
			}
			e.target += maxWeight
			m.rows[e.takeRow(taken)] = uint16(i)
			filled++
		}
	}
	return m
}

// maglevEndpoints returns the endpoints, sorted by name, and their largest weight.
func maglevEndpoints(endpoints []model.Endpoint, rows uint64) (out []maglevEndpoint, maxWeight float64) {
	var sum float64
	for _, e := range endpoints {
		sum += float64(e.Weight)
	}
	for _, e := range endpoints {
		m := maglevEndpoint{name: e.ID, // see hashKey
			address: e.Address, weight: float64(e.Weight) / sum}
		m.offset, m.skip = hashWithSeed(m.name, 0)%rows, hashWithSeed(m.name, 1)%(rows-1)+1
		out, maxWeight = append(out, m), max(maxWeight, m.weight)
	}
	slices.SortFunc(out, func(a, b maglevEndpoint) int { return cmp.Compare(a.name, b.name) })
	return out, maxWeight
}

// takeRow takes the first free row of the endpoint's permutation, and returns it.
func (e *maglevEndpoint) takeRow(taken []bool) uint64 {
	for {
		row := (e.offset + e.skip*e.next) % uint64(len(taken))
		e.next++
		if !taken[row] {
			taken[row] = true
			return row
		}
	}
}

// find returns the endpoint of a client's address.
func (m maglev) find(client netip.Addr) netip.Addr {
	return m.endpoints[m.rows[xxhash.Sum64String(client.String())%uint64(len(m.rows))]]
}

func hashWithSeed(text string, seed uint64) uint64 {
	d := xxhash.NewWithSeed(seed)
	_, _ = d.WriteString(text) // it never fails
	return d.Sum64()
}
