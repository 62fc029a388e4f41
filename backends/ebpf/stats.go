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
	drops, err := b.kernel.drops()
	if err != nil {
		return dataplane.Stats{}, err
	}
	out := dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{}, Endpoints: map[dataplane.EndpointKey]dataplane.Counter{}, Drops: drops}
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, f := range b.state.frontends {
		if out.Frontends[key], err = read(b.kernel.objects.ServiceCounters, f.number); err != nil {
			return dataplane.Stats{}, err
		}
	}
	for id, p := range b.state.pools {
		for name, e := range p.endpoints {
			if out.Endpoints[dataplane.EndpointKey{Pool: id, Endpoint: name}], err = read(b.kernel.objects.EndpointCounters, e.handle); err != nil {
				return dataplane.Stats{}, err
			}
		}
	}
	return out, nil
}

// read sums up the counters of all processors.
func read(m *ebpf.Map, number uint32) (out dataplane.Counter, err error) {
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
