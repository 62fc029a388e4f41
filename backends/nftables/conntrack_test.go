package nftables

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// ownedBy returns a frontend of the tenant with one endpoint.
func ownedBy(tenant string, v4 bool, endpoint int) model.Snapshot {
	f := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all")
	pool := labPool("all", v4, endpoint)
	pool.ID, pool.Tenant = model.PoolID(tenant+"/all"), tenant
	f.Tenant, f.Pool = tenant, pool.ID
	return model.Snapshot{Pools: []model.Pool{pool}, Frontends: []model.Frontend{f}}
}

// While another program has NAT rules, which may be those of a successor, a gateway that is purged ends no connections. Connection tracking keeps them for
// days.
func TestConnectionsFromBeforeAPurgeGoOnForTheSameTenantOnly(t *testing.T) {
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
			require.NoError(t, g.lab.Gateways[0].Masquerade(9))
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

func TestConnectionsEndWithAPurgeIfNobodyRewritesThemAnyMore(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newGateway(t)
		server, err := g.lab.Nodes[0].Serve(30080)
		require.NoError(t, err)
		t.Cleanup(func() { server.Close() })
		g.apply(ownedBy("t", v4, 0))
		s, err := g.lab.A.Stream(netip.AddrPortFrom(lab.VIP(v4, 1), 80), lab.From{})
		require.NoError(t, err)
		t.Cleanup(func() { s.Close() })
		g.do(func() error { return g.Close(t.Context(), true) })
		require.NoError(t, s.SetReadDeadline(time.Now().Add(30*time.Second)))
		_, err = s.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET, "a client that sends nothing")
	}
}

// A new process reads the state from the kernel.
func TestANewProcessKnowsTheFormerTenantOfAFrontend(t *testing.T) {
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

// Connection tracking sees only the client's packets of a direct connection. A client that is silent for some time after its FIN has received the endpoint's, too.
func TestAClosedDirectConnectionIsDeletedWithItsEndpoint(t *testing.T) {
	closing := map[uint8]time.Duration{nl.TCP_CONNTRACK_FIN_WAIT: 120 * time.Second, nl.TCP_CONNTRACK_CLOSE_WAIT: 60 * time.Second}
	vip, there, left := netip.MustParseAddr("203.0.113.1"), endpoints(2)[0], endpoints(2)[1]
	s := newState(families[0])
	edits(t, s, model.Pool{ID: "t/all", Tenant: "t", Endpoints: []model.Endpoint{there}})
	f := labFrontend(model.TCP, vip, 80, 80, "all")
	f.Forwarding = model.Direct
	plan, err := s.planFrontend(f)
	require.NoError(t, err)
	plan.commit()
	tally(s.vips, plan.vips)
	flow := func(endpoint model.Endpoint, state uint8, expires time.Duration, mark uint32) *hostflows.Flow {
		return &hostflows.Flow{Protocol: model.TCP, Client: netip.MustParseAddr("192.0.2.1"), ReplyTo: netip.MustParseAddr("192.0.2.1"), ClientPort: 1000, VIP: vip, VIPPort: 80,
			Endpoint: endpoint.Address, EndpointPort: 80, Mark: directNumbers + 1 | mark, State: state, Expires: expires}
	}
	for what, of := range map[string]struct {
		flow *hostflows.Flow
		ends bool
	}{
		"established":                      {flow(left, nl.TCP_CONNTRACK_ESTABLISHED, 100*time.Second, 0), false},
		"of an endpoint that is there":     {flow(there, nl.TCP_CONNTRACK_FIN_WAIT, time.Second, 0), false},
		"ended by the client a moment ago": {flow(left, nl.TCP_CONNTRACK_FIN_WAIT, 116*time.Second, 0), false},
		"ended by the client":              {flow(left, nl.TCP_CONNTRACK_FIN_WAIT, 115*time.Second, 0), true},
		"half closed, and acknowledging":   {flow(left, nl.TCP_CONNTRACK_CLOSE_WAIT, 59*time.Second, 0), false},
		"closed":                           {flow(left, nl.TCP_CONNTRACK_CLOSE_WAIT, 50*time.Second, 0), true},
		"met by another SYN":               {flow(left, nl.TCP_CONNTRACK_CLOSE_WAIT, 60*time.Second, unansweredBit), true},
		"in a state of unknown length":     {flow(left, nl.TCP_CONNTRACK_LAST_ACK, time.Second, 0), false},
	} {
		require.Equal(t, of.ends, staleFilter{state: s, closing: closing}.matches(of.flow), what)
	}
}
