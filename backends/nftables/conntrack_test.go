package nftables

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// ownedBy serves an address from one endpoint of the tenant.
func ownedBy(tenant string, v4 bool, endpoint int) model.Snapshot {
	f := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all")
	pool := labPool("all", v4, endpoint)
	pool.ID, pool.Tenant = model.PoolID(tenant+"/all"), tenant
	f.Tenant, f.Pool = tenant, pool.ID
	return model.Snapshot{Pools: []model.Pool{pool}, Frontends: []model.Frontend{f}}
}

// A gateway that leaves ends no connections, since others may ask it about them. Connection tracking knows them for days.
func TestConnectionsOfBeforeAPurgeGoOnWithTheirTenantAlone(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		for tenant, goesOn := range map[string]bool{"t": true, "u": false} {
			g := newGateway(t)
			endpoint := 0
			if tenant == "u" {
				endpoint = 1
			}
			for _, node := range g.lab.Nodes[:2] {
				server, err := node.Serve(30080)
				require.NoError(t, err)
				t.Cleanup(func() { server.Close() })
			}
			g.apply(ownedBy("t", v4, 0))
			s, err := g.lab.A.Stream(netip.AddrPortFrom(lab.VIP(v4, 1), 80), lab.From{})
			require.NoError(t, err)
			t.Cleanup(func() { s.Close() })
			g.do(func() error { return g.Close(t.Context(), true) })
			g.restart()
			g.apply(ownedBy(tenant, v4, endpoint))
			if goesOn {
				require.NoError(t, s.Alive())
			} else {
				require.Error(t, s.Alive(), "a connection to the former tenant's endpoint goes on")
			}
		}
	}
}

// What a process was told before it ended, its successor reads from the kernel.
func TestASuccessorKnowsWhoseAFrontendWas(t *testing.T) {
	g := newGateway(t)
	for _, node := range g.lab.Nodes[:2] {
		server, err := node.Serve(30080)
		require.NoError(t, err)
		t.Cleanup(func() { server.Close() })
	}
	g.apply(ownedBy("t", true, 0))
	s, err := g.lab.A.Stream(netip.AddrPortFrom(lab.VIP(true, 1), 80), lab.From{})
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	g.restart()
	g.apply(ownedBy("u", true, 1))
	require.Error(t, s.Alive(), "a connection to the former tenant's endpoint goes on")
}
