package ebpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane/shares"
	"kubelb.k8c.io/backends/ebpf/bpf"
	"kubelb.k8c.io/core/model"
)

func TestOneTenantDoesNotFillTheSharedMaps(t *testing.T) {
	frontend := func(tenant string, port, ranges int) model.Frontend {
		return model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.AddrFrom4([4]byte{203, 0, 113, byte(port >> 16)}), Protocol: model.TCP, Port: uint16(port)}, Tenant: tenant,
			Restricted: ranges > 0, SourceRanges: make([]netip.Prefix, ranges)}
	}
	pool := func(tenant string, n, endpoints int) model.Pool {
		return model.Pool{ID: model.PoolID(fmt.Sprintf("%s/%d", tenant, n)), Tenant: tenant, Endpoints: make([]model.Endpoint, endpoints)}
	}
	for name, c := range map[string]struct {
		// add adds the n-th record of a tenant, a large one or a small one. If old is set, it replaces a large one.
		add     func(s *shares.Shares, tenant string, n int, large bool, old bool) error
		each    int
		size    int
		message string
	}{
		"frontends": {func(s *shares.Shares, tenant string, n int, _, old bool) error {
			var before *frontendState
			if old {
				before = &frontendState{tenant: tenant}
			}
			return replaceFrontend(s, frontend(tenant, n, 0), before)
		}, 1, maxServices, "tenant hostile would have 98305 ports"},
		"source ranges": {func(s *shares.Shares, tenant string, n int, large, old bool) error {
			var before *frontendState
			if old {
				before = &frontendState{tenant: tenant, ranges: make([]netip.Prefix, 128)}
			}
			return replaceFrontend(s, frontend(tenant, n, map[bool]int{true: 128, false: 1}[large]), before)
		}, 128, maxRanges, "tenant hostile would have 196609 source ranges"},
		"pools": {func(s *shares.Shares, tenant string, n int, _, old bool) error {
			var before *poolState
			if old {
				before = &poolState{}
			}
			return replacePool(s, pool(tenant, n, 0), before)
		}, 1, maxPools, "tenant hostile would have 12289 pools"},
		"endpoints": {func(s *shares.Shares, tenant string, n int, large, old bool) error {
			var before *poolState
			if old {
				before = &poolState{endpoints: map[string]endpointState{}}
				for i := range 128 {
					before.endpoints[fmt.Sprint(i)] = endpointState{}
				}
			}
			return replacePool(s, pool(tenant, n, map[bool]int{true: 128, false: 1}[large]), before)
		}, 128, maxEndpoints, "tenant hostile would have 98305 endpoints"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState().shares()
			n := 0
			for ; c.add(s, "hostile", n, true, false) == nil; n++ {
				require.LessOrEqual(t, n, c.size)
			}
			require.Equal(t, c.size/4*3, n*c.each, "one tenant may use three quarters")
			require.ErrorContains(t, c.add(s, "hostile", n, false, false), c.message)
			for i := range c.size / 4 / c.each {
				require.NoError(t, c.add(s, "a", i, true, false), "another tenant may use the last quarter")
			}
			require.NoError(t, c.add(s, "hostile", 0, true, true), "unchanged usage is never refused")
			if c.each > 1 {
				require.NoError(t, c.add(s, "hostile", 0, false, true), "a decrease is never refused")
				require.Error(t, c.add(s, "hostile", n, false, false), "the last quarter is used")
			}
		})
	}
}

func TestUsageIsCountedFromTheState(t *testing.T) {
	s := newState()
	s.pools["a/p"] = &poolState{endpoints: map[string]endpointState{"n1": {}, "n2": {}}}
	s.setFrontend(model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}, &frontendState{tenant: "a", ranges: make([]netip.Prefix, 3)})
	s.setFrontend(model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.2"), Protocol: model.TCP, Port: 80}, &frontendState{tenant: "b"})
	for tenant, usage := range map[string]shares.Usage{"a": {1, 2, 1, 3}, "b": {0, 0, 1, 0}} {
		require.Equal(t, usage, s.shares().Usage(tenant), tenant)
	}
	// An address that moves to another tenant counts for the new owner.
	used := s.shares()
	require.NoError(t, replaceFrontend(used, model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.2"), Protocol: model.TCP, Port: 80}, Tenant: "a"}, s.frontends[model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.2"), Protocol: model.TCP, Port: 80}]))
	require.Equal(t, 2, used.Usage("a")[2])
}

func TestTheSizesAreThoseOfTheMaps(t *testing.T) {
	spec, err := bpf.LoadTc()
	require.NoError(t, err)
	require.Equal(t, ebpf.LPMTrie, spec.Maps[mapSourceRanges].Type)
	for name, size := range map[string]uint32{mapSourceRanges: maxRanges, mapPools: maxPools, mapEndpoints: maxEndpoints, mapServices: maxServices, mapFrontends: maxServices} {
		require.Equal(t, size, spec.Maps[name].MaxEntries, name)
	}
}

// Clients of all tenants are in one map. The kernel evicts the client that it has not seen for longest, of any tenant, so that a new client always fits.
func TestTheMapOfClientsIsBoundedAndAlwaysTakesANewClient(t *testing.T) {
	spec, err := bpf.LoadTc()
	require.NoError(t, err)
	clients := spec.Maps[mapClients]
	require.Equal(t, ebpf.LRUHash, clients.Type)
	require.EqualValues(t, 131_072, clients.MaxEntries, "docs/limits.md says so")
	require.Zero(t, clients.Flags, "one list for all processors: otherwise each would have a part of the map, and evict clients before the map is full")
}
