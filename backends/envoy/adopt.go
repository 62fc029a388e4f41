package envoy

import (
	"maps"
	"slices"
)

// takeOver serves what an earlier process served, or nothing yet: an Envoy that runs keeps what it has.
func (b *Backend) takeOver() error {
	var all []guarded
	for _, f := range b.state.frontends {
		all = append(all, b.state.guarded(f, !b.state.empty(f)))
		b.affinity.setEndpoints(f, b.state.pools[f.Pool])
	}
	if _, err := b.push(slices.Collect(maps.Keys(b.state.frontends)), nil); err != nil {
		return err
	}
	if err := b.guard.install(all); err != nil || !b.state.known {
		return err
	}
	return b.serve()
}
