package ebpf

import (
	"net/netip"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// hasFlow tells whether the client's flow exists.
func (x *exchange) hasFlow(port uint16) bool {
	for _, m := range x.flowTables() {
		var f flow
		if m.Lookup(x.key(port), &f) == nil {
			return true
		}
	}
	return false
}

// mustExpireAfter requires that a quiet flow expires after its lifetime, and not before.
func (x *exchange) mustExpireAfter(port uint16, lifetime time.Duration) {
	x.advance(lifetime - 3*time.Second)
	x.sweep()
	require.True(x, x.hasFlow(port), "shortly before")
	x.advance(6 * time.Second)
	x.sweep()
	require.False(x, x.hasFlow(port), "shortly after")
}

// sweepFixtures test when flows expire.
var sweepFixtures = []fixture{
	{name: "an unanswered connection expires after a minute", only: tcp, run: func(x *exchange) {
		x.mustReachNode(x.firstFrame(portPlain))
		x.mustExpireAfter(portPlain, time.Minute)
	}},
	{name: "an established connection expires after a day", only: tcp, run: func(x *exchange) {
		x.open(portPlain)
		x.mustExpireAfter(portPlain, 24*time.Hour)
	}},
	{name: "a connection counts as open until its client has closed it", only: tcp, run: func(x *exchange) {
		x.open(portPlain)
		open, err := x.backend.kernel.openConnections()
		require.NoError(x, err)
		require.Contains(x, open, x.key(portPlain))
		x.mustReachNode(x.nextFrame(portPlain, fin|ack))
		open, err = x.backend.kernel.openConnections()
		require.NoError(x, err)
		require.NotContains(x, open, x.key(portPlain))
	}},
	{name: "a half closed connection expires after an hour", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.mustReachClient(x.reply(s, fin|ack), portPlain)
		x.mustExpireAfter(portPlain, time.Hour)
	}},
	{name: "a closed connection expires after half a minute", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.mustReachNode(x.nextFrame(portPlain, fin|ack))
		x.mustReachClient(x.reply(s, fin|ack), portPlain)
		x.mustExpireAfter(portPlain, 30*time.Second)
	}},
	{name: "a connection that the node has reset expires after half a minute", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.mustReachClient(x.reply(s, rst), portPlain)
		x.mustExpireAfter(portPlain, 30*time.Second)
	}},
	{name: "a connection that the client has reset expires after two minutes", only: tcp, run: func(x *exchange) {
		x.open(portPlain)
		x.mustReachNode(x.nextFrame(portPlain, rst))
		x.mustExpireAfter(portPlain, 2*time.Minute)
	}},
	{name: "a direct connection expires after a day", only: tcp, run: func(x *exchange) {
		x.fromClient(x.firstFrame(portDirect))
		x.mustExpireAfter(portDirect, 24*time.Hour)
	}},
	{name: "an unanswered UDP flow expires after half a minute", only: udp, run: func(x *exchange) {
		x.mustReachNode(x.firstFrame(portPlain))
		x.mustExpireAfter(portPlain, 30*time.Second)
	}},
	{name: "an answered UDP flow expires after two minutes", only: udp, run: func(x *exchange) {
		x.open(portPlain)
		x.mustExpireAfter(portPlain, 2*time.Minute)
	}},
	{name: "a flow in which only the node sends does not expire", run: func(x *exchange) {
		s := x.open(portPlain)
		for range 10 {
			x.advance(20 * time.Second)
			x.mustReachClient(x.reply(s, ack), portPlain)
			x.sweep()
		}
		require.Equal(x, s.from, x.mustReachNode(x.nextFrame(portPlain, ack)).from)
	}},
	{name: "flows of a deleted frontend are deleted by the next sweep", run: func(x *exchange) {
		x.open(portPlain)
		pools, frontends := fixtures()
		x.apply(pools, without(frontends, portPlain)...)
		x.sweep()
		require.False(x, x.hasFlow(portPlain))
	}},
	{name: "an idle timeout ends a connection, which is reported for both directions", only: tcp, run: func(x *exchange) {
		pools, frontends := fixtures()
		for i := range frontends {
			frontends[i].IdleTimeout = time.Minute
		}
		x.apply(pools, frontends...)
		s := x.open(portPlain)
		x.advance(57 * time.Second)
		_, idle, err := x.backend.kernel.sweep()
		require.NoError(x, err)
		require.NotContains(x, idle, x.key(portPlain))
		x.advance(6 * time.Second)
		_, idle, err = x.backend.kernel.sweep()
		require.NoError(x, err)
		require.Contains(x, idle, x.key(portPlain))
		require.Contains(x, idle, tuple{Source: addressOf(s.to.Addr()), Destination: addressOf(s.from.Addr()), SourcePort: portOf(s.to.Port()), DestinationPort: portOf(s.from.Port()),
			Protocol: x.protocol, Family: familyOf(s.to.Addr())})
		x.mustRefuse(x.nextFrame(portPlain, ack))
	}},
	{name: "a removed endpoint is freed after its last flow, and its number is allocated again", only: tcp, run: func(x *exchange) {
		x.advance(30 * time.Hour)
		x.sweep()
		require.Empty(x, x.backend.state.removed)
		s := x.open(portPlain)
		x.applyWithout(s.to.Addr())
		x.sweep()
		require.Len(x, x.backend.state.removed, 1, "its connection goes on")
		x.advance(30 * time.Hour)
		x.sweep()
		require.Empty(x, x.backend.state.removed)
		last := x.backend.state.last.Endpoint
		for i := range x.backend.state.freeEndpoints {
			x.backend.state.freeEndpoints[i].since = time.Now().Add(-time.Hour)
		}
		pools, frontends := fixtures()
		x.apply(pools, frontends...)
		require.Equal(x, last, x.backend.state.last.Endpoint)
		x.open(portPlain)
	}},
	{name: "connections, packets and bytes are counted by frontend and by endpoint", run: func(x *exchange) {
		before := x.stats()
		s := x.open(portPlain)
		after := x.stats()
		key := model.FrontendKey{VIP: theVIP[x.v4], Protocol: model.Protocol(x.protocol), Port: portPlain}
		length := uint64(len(x.firstFrame(portPlain).bytes())+len(x.nextFrame(portPlain, ack).bytes())+len(x.reply(s, ack).bytes())) - 3*14
		require.Equal(x, dataplane.Counter{Connections: 1, Packets: 3, Bytes: length}, minus(after.Frontends[key], before.Frontends[key]))
		for name, address := range map[string]map[bool]netip.Addr{"n1": theNode, "n2": otherNode} {
			endpoint := dataplane.EndpointKey{Pool: poolOf("both", x.v4), Endpoint: name}
			want := dataplane.Counter{}
			if address[x.v4] == s.to.Addr() {
				want = dataplane.Counter{Connections: 1, Packets: 3, Bytes: length}
			}
			require.Equal(x, want, minus(after.Endpoints[endpoint], before.Endpoints[endpoint]), name)
		}
	}},
}

func (b *testGateway) stats() dataplane.Stats {
	s, err := b.backend.Stats(b.Context())
	require.NoError(b, err)
	return s
}

func minus(a, b dataplane.Counter) dataplane.Counter {
	return dataplane.Counter{Connections: a.Connections - b.Connections, Packets: a.Packets - b.Packets, Bytes: a.Bytes - b.Bytes}
}
