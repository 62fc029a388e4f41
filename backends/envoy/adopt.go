package envoy

import (
	"maps"
	"slices"
)

// adopt serves what an earlier process served. If that is unknown, it serves nothing yet, so that a running Envoy keeps its resources.
func (b *Backend) adopt() error {
	var all []frontendRules
	for _, f := range b.state.frontends {
		all = append(all, b.state.rulesOf(f, !b.state.empty(f)))
		b.affinity.setEndpoints(f, b.state.pools[f.Pool])
	}
	if _, err := b.push(slices.Collect(maps.Keys(b.state.frontends)), nil); err != nil {
		return err
	}
	if err := b.ruleset.install(all); err != nil || !b.state.committed {
		return err
	}
	return b.serve()
}
