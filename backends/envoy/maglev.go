package envoy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/cespare/xxhash/v2"

	"kubelb.k8c.io/core/model"
)

// maglev is the table by which Envoy finds the endpoint of a hash. It is the same here, so that a client whom nobody remembers meets one
// endpoint, whether Envoy is told of it or finds it alone, and at whichever gateway.
type maglev struct {
	endpoints []netip.Addr
	rows      []uint16 // each is the number of an endpoint
}

// turn is an endpoint on its way through the table.
type turn struct {
	name               string
	endpoint           netip.Addr
	offset, skip, next uint64
	// weight is the endpoint's share of all weights, due what it has to reach until it takes the next row.
	weight, due float64
}

// newMaglev fills as many rows as given, a prime number. There must be an endpoint.
func newMaglev(endpoints []model.Endpoint, port uint16, rows uint64) maglev {
	turns, most := turnsOf(endpoints, port, rows)
	m := maglev{rows: make([]uint16, rows)}
	taken := make([]bool, rows)
	for _, t := range turns {
		m.endpoints = append(m.endpoints, t.endpoint)
	}
	for filled, round := uint64(0), 1.0; filled < rows; round++ {
		for i := range turns {
			t := &turns[i]
			if filled == rows || round*t.weight < t.due {
				continue
			}
			t.due += most
			m.rows[t.take(taken)] = uint16(i)
			filled++
		}
	}
	return m
}

// turnsOf are the endpoints in the order of their names, and the largest weight.
func turnsOf(endpoints []model.Endpoint, port uint16, rows uint64) (turns []turn, most float64) {
	var all float64
	for _, e := range endpoints {
		all += float64(e.Weight)
	}
	for _, e := range endpoints {
		t := turn{name: netip.AddrPortFrom(e.Address, port).String(), endpoint: e.Address, weight: float64(e.Weight) / all}
		t.offset, t.skip = seeded(t.name, 0)%rows, seeded(t.name, 1)%(rows-1)+1
		turns, most = append(turns, t), max(most, t.weight)
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Compare(a.name, b.name) })
	return turns, most
}

// take returns the endpoint's next row that is free.
func (t *turn) take(taken []bool) uint64 {
	for {
		row := (t.offset + t.skip*t.next) % uint64(len(taken))
		t.next++
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

func seeded(text string, seed uint64) uint64 {
	d := xxhash.NewWithSeed(seed)
	_, _ = d.WriteString(text) // it never fails
	return d.Sum64()
}
