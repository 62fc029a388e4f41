package envoy

import (
	"fmt"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"kubelb.k8c.io/backends/dataplane/shares"
	"kubelb.k8c.io/core/model"
)

// Memory of a frontend in kB, as measured (RESULTS.md): a constant, the larger Maglev table beyond maxEndpointsSmall, and each endpoint of its pool.
// Envoy shares nothing between frontends. With affinity the filter adds to Envoy's memory, and the plugin has a table and the endpoints, too.
const (
	kBOfFrontend       = 65
	kBOfLargeTable     = 72
	kBOfEndpoint       = 2.2
	kBOfAffinity       = 12
	kBOfPluginTable    = 131
	kBOfPluginEndpoint = 0.2
)

// memoryOf returns the memory in kB of a frontend with so many endpoints, in Envoy and in the plugin.
func memoryOf(f model.Frontend, endpoints int) int {
	kB := kBOfFrontend + kBOfEndpoint*float64(endpoints)
	if endpoints > maxEndpointsSmall {
		kB += kBOfLargeTable
	}
	if f.AffinityTimeout > 0 {
		kB += kBOfAffinity + kBOfPluginEndpoint*float64(endpoints)
		if endpoints > maxEndpointsSmall {
			kB += kBOfPluginTable
		}
	}
	return int(kB)
}

// memory is how many kB frontends may take: what the option says, or a third of what this process may use, or of all that the host has. Another Envoy runs
// beside it while it is replaced, and connections need the rest.
func (s settings) memory() (int, error) {
	if s.memoryMiB > 0 {
		return s.memoryMiB << 10, nil
	}
	limit, failed := memlimit.FromCgroup()
	if failed != nil {
		var err error
		if limit, err = memlimit.FromSystem(); err != nil {
			return 0, fmt.Errorf("find out how much memory there is: %w, %w; set --backend-option %s", failed, err, optionMemory)
		}
	}
	return int(limit / 3 / 1000), nil
}

// shares returns each tenant's usage of Envoy's memory.
func (b *Backend) shares() *shares.Shares {
	out := shares.New([]shares.Resource{{Unit: "kB of Envoy's memory", Size: b.memoryKB,
		Advice: "use fewer ports, or fewer endpoints for them; or have the gateway's operator raise its memory limit, or --backend-option " + optionMemory}})
	for _, f := range b.state.frontends {
		out.Add(f.Tenant, b.state.memoryOf(f))
	}
	return out
}

func (s *store) memoryOf(f model.Frontend) shares.Usage {
	return shares.Usage{memoryOf(f, len(s.pools[f.Pool].Endpoints))}
}

// memoryOfUsers returns the memory of all frontends of the pool, if it has so many endpoints.
func (s *store) memoryOfUsers(pool model.PoolID, endpoints int) shares.Usage {
	kB := 0
	for key := range s.usersOf[pool] {
		kB += memoryOf(s.frontends[key], endpoints)
	}
	return shares.Usage{kB}
}

// replacePool counts the pool's endpoints for each frontend that uses it. It refuses a pool beyond its tenant's share.
func (a *apply) replacePool(p model.Pool) error {
	return a.shares.Replace(p.Tenant, a.state.memoryOfUsers(p.ID, len(a.state.pools[p.ID].Endpoints)), a.state.memoryOfUsers(p.ID, len(p.Endpoints)))
}

// replaceFrontend counts the frontend. It refuses a frontend beyond its tenant's share.
func (a *apply) replaceFrontend(f model.Frontend) error {
	usage := shares.Usage{0}
	if former, known := a.state.frontends[f.FrontendKey]; known && former.Tenant == f.Tenant {
		usage = a.state.memoryOf(former)
	}
	return a.shares.Replace(f.Tenant, usage, a.state.memoryOf(f))
}
