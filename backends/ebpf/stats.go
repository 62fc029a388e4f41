package ebpf

import (
	"context"
	"fmt"

	"github.com/cilium/ebpf"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// Stats reads the counters.
func (b *Backend) Stats(context.Context) (dataplane.Stats, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	drops, err := b.kernel.drops()
	if err != nil {
		return dataplane.Stats{}, err
	}
	out := dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{}, Endpoints: map[dataplane.EndpointKey]dataplane.Counter{}, Drops: drops}
	for key, f := range b.state.frontends {
		c, err := sumCounters(b.kernel.objects.ServiceCounters, f.number)
		if err == nil && f.limit.MaxFlows > 0 {
			c.Open, err = b.kernel.flowsOf(f.number)
		}
		if err != nil {
			return dataplane.Stats{}, err
		}
		out.Frontends[key] = c
	}
	for id, p := range b.state.pools {
		for name, e := range p.endpoints {
			if out.Endpoints[dataplane.EndpointKey{Pool: id, Endpoint: name}], err = sumCounters(b.kernel.objects.EndpointCounters, e.handle); err != nil {
				return dataplane.Stats{}, err
			}
		}
	}
	return out, nil
}

// flowsOf returns the number of flows of a limited service.
func (k *kernel) flowsOf(number uint32) (uint64, error) {
	var l limit
	if err := k.objects.Limits.Lookup(number, &l); err != nil {
		return 0, fmt.Errorf("map %s: %w", mapLimits, err)
	}
	return uint64(max(0, l.Flows)), nil
}

// sumCounters adds up the counters of all processors.
func sumCounters(m *ebpf.Map, number uint32) (out dataplane.Counter, err error) {
	var each []counter
	if err := m.Lookup(number, &each); err != nil {
		return out, fmt.Errorf("read counters: %w", err)
	}
	for _, c := range each {
		out.Connections += c.Connections
		out.Packets += c.Packets
		out.Bytes += c.Bytes
	}
	return out, nil
}

// drops returns how many packets were dropped, or answered by the programs, by reason.
func (k *kernel) drops() (map[string]uint64, error) {
	out := map[string]uint64{}
	for i, name := range reasonNames {
		var counts []uint64
		if err := k.objects.Reasons.Lookup(uint32(i), &counts); err != nil {
			return nil, fmt.Errorf("read counters: %w", err)
		}
		for _, n := range counts {
			out[name] += n
		}
	}
	return out, nil
}
