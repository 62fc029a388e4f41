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

func TestOneTenantDoesNotFillTheTablesThatAllShare(t *testing.T) {
	frontend := func(tenant string, port, ranges int) model.Frontend {
		return model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.AddrFrom4([4]byte{203, 0, 113, byte(port >> 16)}), Protocol: model.TCP, Port: uint16(port)}, Tenant: tenant,
			Restricted: ranges > 0, SourceRanges: make([]netip.Prefix, ranges)}
	}
	pool := func(tenant string, n, endpoints int) model.Pool {
		return model.Pool{ID: model.PoolID(fmt.Sprintf("%s/%d", tenant, n)), Tenant: tenant, Endpoints: make([]model.Endpoint, endpoints)}
	}
	for name, c := range map[string]struct {
		// take takes the n-th one of a tenant's, in the place of one with as much.
		take    func(of *shares.Shares, tenant string, n int, much bool, old bool) error
		each    int
		room    int
		message string
	}{
		"frontends": {func(of *shares.Shares, tenant string, n int, _, old bool) error {
			var before *frontendState
			if old {
				before = &frontendState{tenant: tenant}
			}
			return takeFrontend(of, frontend(tenant, n, 0), before)
		}, 1, maxServices, "tenant hostile would have 98305 ports"},
		"source ranges": {func(of *shares.Shares, tenant string, n int, much, old bool) error {
			var before *frontendState
			if old {
				before = &frontendState{tenant: tenant, ranges: make([]netip.Prefix, 128)}
			}
			return takeFrontend(of, frontend(tenant, n, map[bool]int{true: 128, false: 1}[much]), before)
		}, 128, maxRanges, "tenant hostile would have 196609 source ranges"},
		"pools": {func(of *shares.Shares, tenant string, n int, _, old bool) error {
			var before *poolState
			if old {
				before = &poolState{}
			}
			return takePool(of, pool(tenant, n, 0), before)
		}, 1, maxPools, "tenant hostile would have 12289 pools"},
		"endpoints": {func(of *shares.Shares, tenant string, n int, much, old bool) error {
			var before *poolState
			if old {
				before = &poolState{endpoints: map[string]endpointState{}}
				for i := range 128 {
					before.endpoints[fmt.Sprint(i)] = endpointState{}
				}
			}
			return takePool(of, pool(tenant, n, map[bool]int{true: 128, false: 1}[much]), before)
		}, 128, maxEndpoints, "tenant hostile would have 98305 endpoints"},
	} {
		t.Run(name, func(t *testing.T) {
			of := newState().shares()
			n := 0
			for ; c.take(of, "hostile", n, true, false) == nil; n++ {
				require.LessOrEqual(t, n, c.room)
			}
			require.Equal(t, c.room/4*3, n*c.each, "alone it has all but a quarter")
			require.ErrorContains(t, c.take(of, "hostile", n, false, false), c.message)
			for i := range c.room / 4 / c.each {
				require.NoError(t, c.take(of, "a", i, true, false), "another one has a quarter")
			}
			require.NoError(t, c.take(of, "hostile", 0, true, true), "as much as before")
			if c.each > 1 {
				require.NoError(t, c.take(of, "hostile", 0, false, true), "less than before")
				require.Error(t, c.take(of, "hostile", n, false, false), "others have what was left")
			}
		})
	}
}

func TestWhatATenantHasIsCountedByWhatTheTablesHold(t *testing.T) {
	s := newState()
	s.pools["a/p"] = &poolState{endpoints: map[string]endpointState{"n1": {}, "n2": {}}}
	s.setFrontend(model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}, &frontendState{tenant: "a", ranges: make([]netip.Prefix, 3)})
	s.setFrontend(model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.2"), Protocol: model.TCP, Port: 80}, &frontendState{tenant: "b"})
	for tenant, has := range map[string]shares.Usage{"a": {1, 2, 1, 3}, "b": {0, 0, 1, 0}} {
		require.Equal(t, has, s.shares().Usage(tenant), tenant)
	}
	// An address that passes on counts for who has it.
	of := s.shares()
	require.NoError(t, takeFrontend(of, model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.2"), Protocol: model.TCP, Port: 80}, Tenant: "a"}, s.frontends[model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.2"), Protocol: model.TCP, Port: 80}]))
	require.Equal(t, 2, of.Usage("a")[2])
}

func TestTheRoomsAreThoseOfTheMaps(t *testing.T) {
	spec, err := bpf.LoadTc()
	require.NoError(t, err)
	require.Equal(t, ebpf.LPMTrie, spec.Maps[mapSourceRanges].Type)
	for name, room := range map[string]uint32{mapSourceRanges: maxRanges, mapPools: maxPools, mapEndpoints: maxEndpoints, mapServices: maxServices, mapFrontends: maxServices} {
		require.Equal(t, room, spec.Maps[name].MaxEntries, name)
	}
}

// Clients of all tenants are in one map. The kernel forgets one that it has not seen for long, whose it is, so that there is always room for the next one.
func TestTheMemoryOfClientsIsBoundedAndAlwaysTakesTheNextOne(t *testing.T) {
	spec, err := bpf.LoadTc()
	require.NoError(t, err)
	clients := spec.Maps[mapClients]
	require.Equal(t, ebpf.LRUHash, clients.Type)
	require.EqualValues(t, 131_072, clients.MaxEntries, "docs/limits.md says so")
	require.Zero(t, clients.Flags, "one list of all processors: else each would have a part of the room, and forget clients before all is used")
}
