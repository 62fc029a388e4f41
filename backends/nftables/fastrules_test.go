package nftables

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// one applies a frontend to the pool of these endpoints.
func (g *gateway) one(f model.Frontend, endpoints ...int) {
	g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", f.VIP.Is4(), endpoints...)}, Frontends: []model.Frontend{f}})
}

// fastStream opens a fast connection from port 40000.
func (g *gateway) fastStream(f model.Frontend) *lab.Stream {
	g.Helper()
	s, err := g.lab.A.Stream(netip.AddrPortFrom(f.VIP, f.Port), lab.From{Port: 40000})
	require.NoError(g, err)
	g.Cleanup(func() { s.Close() })
	require.NoError(g, s.Alive())
	g.isFast(s.Alive, "the connection")
	return s
}

// reset resets the connection, and waits until conntrack has seen it.
func (g *gateway) reset(s *lab.Stream, v4 bool) {
	g.Helper()
	require.NoError(g, s.Reset())
	require.Eventually(g, func() bool { return g.countFlows(v4, isNotEstablished) == 1 }, 10*time.Second, 10*time.Millisecond)
}

// countFlows counts the matching entries of connection tracking.
func (g *gateway) countFlows(v4 bool, matches func(*hostflows.Flow) bool) (n int) {
	g.do(func() error {
		return hostflows.EachTracked(v4, func(f *hostflows.Flow) bool {
			if matches(f) {
				n++
			}
			return false
		})
	})
	return n
}

// dropEndedNow calls dropEnded at once, however long the last scan took.
func (g *gateway) dropEndedNow() {
	g.Helper()
	for _, t := range g.tables {
		t.ends, t.closing = scan{}, scan{}
	}
	g.do(func() error { return errors.Join(g.dropEnded((*table).dropEnded), g.dropEnded((*table).dropClosing)) })
}

// answeredBy connects from port 40000 again.
func (g *gateway) answeredBy(endpoint int, f model.Frontend) {
	g.Helper()
	answer, err := g.lab.A.Request("tcp", netip.AddrPortFrom(f.VIP, f.Port), lab.From{Port: 40000})
	require.NoError(g, err)
	require.Equal(g, lab.EndpointAddress(f.VIP.Is4(), endpoint), answer.Endpoint)
}

// This test works on any kernel, since it writes the notes itself.
func TestOnlyConnectionsNotedAsResetEndWithTheirEndpoint(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newGateway(t)
		g.restartWithOption(flowtableOff)
		server, err := g.lab.Nodes[0].Serve(30080)
		require.NoError(t, err)
		f := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all")
		noted := func(mark string) {
			g.one(f, 0)
			s, err := g.lab.A.Stream(netip.AddrPortFrom(f.VIP, f.Port), lab.From{})
			require.NoError(t, err)
			t.Cleanup(func() { s.Close() })
			require.Empty(t, g.nft("table inet other { chain note { type filter hook postrouting priority 120; ct mark set "+mark+"; }; }", "-f", "-"))
			require.NoError(t, s.Alive())
			g.nft("", "delete", "table", "inet", "other")
			g.dropEndedNow()
			require.Equal(t, 1, g.countFlows(v4, isTCP), "the endpoint is in the pool, mark %s", mark)
		}
		for _, mark := range []string{"0x6b756202", "0x6b756203"} {
			noted(mark)
			g.one(f, 1)
			require.Zero(t, g.countFlows(v4, isTCP), "mark %s", mark)
		}
		noted("0x6b756201")
		g.one(f, 1)
		g.dropEndedNow()
		require.Equal(t, 1, g.countFlows(v4, isTCP), "a connection that is slow, and goes on")
		server.Close()
	}
}

func isTCP(f *hostflows.Flow) bool { return f.Protocol == model.TCP }

func TestAResetFastConnectionIsDeletedWhenItsEndpointLeaves(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newFastGateway(t)
		f := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all")
		g.one(f, 0)
		g.reset(g.fastStream(f), v4)
		g.one(f, 1)
		g.answeredBy(1, f)
	}
}

func TestAFastConnectionResetAfterItsEndpointLeftIsDeleted(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newFastGateway(t)
		f := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all")
		g.one(f, 0)
		s := g.fastStream(f)
		g.one(f, 1)
		g.dropEndedNow()
		require.NoError(t, s.Alive(), "a connection that nobody has reset")
		g.reset(s, v4)
		g.dropEndedNow()
		g.answeredBy(1, f)
	}
}

func TestANewConnectionWithThePortOfAResetOneIsFast(t *testing.T) {
	g := newFastGateway(t)
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	g.one(f, 0)
	g.reset(g.fastStream(f), true)
	g.fastStream(f)
	require.Zero(t, g.countFlows(true, isNotEstablished))
}

// The endpoint ignores a reset with a wrong sequence number.
func TestAConnectionThatGoesOnAfterAResetIsFastAgain(t *testing.T) {
	g := newFastGateway(t)
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	g.one(f, 0)
	s := g.fastStream(f)
	g.nft("table inet other { chain resets { type filter hook prerouting priority -140; ct direction original ct mark set 0x6b756202; }; }", "-f", "-")
	g.fast.createdAt = time.Time{}
	g.syncFastPath()
	require.NoError(t, s.Alive())
	g.nft("", "delete", "table", "inet", "other")
	g.isFast(s.Alive, "the connection")
	require.Zero(t, g.countFlows(true, isNotEstablished))
}

// When a connection leaves the flowtable, the kernel sets its timeout to the normal one, less that of the flowtable.
func TestAnIdleFastConnectionOutlivesTheTimeoutOfConntrack(t *testing.T) {
	g := newFastGateway(t)
	g.do(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", []byte("300"), 0)
	})
	g.do(func() error { return os.WriteFile("/proc/sys/net/netfilter/nf_flowtable_tcp_timeout", []byte("10"), 0) })
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	g.one(f, 0)
	s := g.fastStream(f)
	require.Eventually(t, func() bool {
		return g.countFlows(true, func(f *hostflows.Flow) bool { return f.State == nl.TCP_CONNTRACK_ESTABLISHED }) == 1
	}, 30*time.Second, time.Second, "the flow is fast for ever")
	g.one(f, 1)
	g.dropEndedNow()
	require.NoError(t, s.Alive())
}

func TestFlowsWhosePacketsAreMarkedInOneDirectionStaySlow(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newFastGateway(t)
		stream, datagrams := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all"), labFrontend(model.UDP, lab.VIP(v4, 1), 80, 30080, "all")
		g.apply(model.Snapshot{Pools: []model.Pool{labPool("all", v4, 0)}, Frontends: []model.Frontend{stream, datagrams}})
		for what, chain := range map[string]string{
			"requests, before they are routed": "type filter hook prerouting priority -150; th dport 80",
			"requests, when they leave":        "type filter hook postrouting priority -150; th dport 30080",
			"answers, before they are routed":  "type filter hook prerouting priority -150; th sport 30080",
			"answers, when they leave":         "type filter hook postrouting priority -150; th sport 30080",
		} {
			require.Empty(t, g.nft("table inet other { chain taint { "+chain+" meta mark set 7; }; }", "-f", "-"))
			g.isSlow(g.begin(stream, g.lab.A), "a connection, marked: "+what)
			g.isSlow(g.begin(datagrams, g.lab.A), "datagrams, marked: "+what)
			g.nft("", "delete", "table", "inet", "other")
		}
		g.isFast(g.begin(stream, g.lab.A), "a connection without marks")
	}
}

// A program that uses connection marks finds no other marks there.
func TestAConnectionMarkedByAnotherProgramGetsNoNote(t *testing.T) {
	g := newFastGateway(t)
	f := labFrontend(model.TCP, lab.VIP(true, 1), 80, 30080, "all")
	g.one(f, 0)
	require.Empty(t, g.nft(`table inet other { chain route { type filter hook prerouting priority -150;
		meta mark set ct mark; meta mark != 0 accept; tcp dport 80 meta mark set 7; ct mark set meta mark; }; }`, "-f", "-"))
	g.isSlow(g.begin(f, g.lab.A), "a connection whose marks are kept")
	require.Equal(t, 1, g.countFlows(true, func(f *hostflows.Flow) bool { return f.Mark == 7 }))
}

func TestAnAsymmetricConnectionStaysSlow(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		g := newFastGateway(t)
		f := labFrontend(model.TCP, lab.VIP(v4, 1), 80, 30080, "all")
		g.one(f, 0)
		// From the client by the segment of the nodes, to it by the router.
		client, gateway := g.lab.Nodes[3], g.lab.Gateways[0]
		network := func(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
		require.NoError(t, client.Route(network(f.VIP), gateway.Address(v4).String()))
		require.NoError(t, gateway.Route(network(client.Address(v4)), routerOf(v4)))
		s, err := client.Stream(netip.AddrPortFrom(f.VIP, f.Port), lab.From{Address: client.Address(v4)})
		require.NoError(t, err)
		g.isSlow(s.Alive, "the requests")
		require.Equal(t, 1, g.countFlows(v4, func(f *hostflows.Flow) bool { return f.State == nl.TCP_CONNTRACK_ESTABLISHED }), "connections that are not fast")
		require.NoError(t, s.Close())
	}
}
