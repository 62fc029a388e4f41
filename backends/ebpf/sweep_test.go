package ebpf

import (
	"net/netip"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// knows tells whether the client's flow is still there.
func (x *exchange) knows(port uint16) bool {
	for _, m := range x.flowTables() {
		var f flow
		if m.Lookup(x.key(port), &f) == nil {
			return true
		}
	}
	return false
}

// mustStayFor requires that the flow is forgotten when nothing has come for so long, and not before.
func (x *exchange) mustStayFor(port uint16, lifetime time.Duration) {
	x.age(lifetime - 3*time.Second)
	x.sweep()
	require.True(x, x.knows(port), "shortly before")
	x.age(6 * time.Second)
	x.sweep()
	require.False(x, x.knows(port), "shortly after")
}

// sweepFixtures are about what is forgotten, and when.
var sweepFixtures = []fixture{
	{name: "a connection that nobody answers is forgotten after a minute", only: tcp, run: func(x *exchange) {
		x.mustReachNode(x.ask(portPlain))
		x.mustStayFor(portPlain, time.Minute)
	}},
	{name: "an established connection is forgotten after a day", only: tcp, run: func(x *exchange) {
		x.begin(portPlain)
		x.mustStayFor(portPlain, 24*time.Hour)
	}},
	{name: "a connection counts as open until its client has closed it", only: tcp, run: func(x *exchange) {
		x.begin(portPlain)
		open, err := x.backend.kernel.connections()
		require.NoError(x, err)
		require.Contains(x, open, x.key(portPlain))
		x.mustReachNode(x.goOn(portPlain, fin|ack))
		open, err = x.backend.kernel.connections()
		require.NoError(x, err)
		require.NotContains(x, open, x.key(portPlain))
	}},
	{name: "a connection that one side has closed is forgotten after an hour", only: tcp, run: func(x *exchange) {
		s := x.begin(portPlain)
		x.mustReachClient(x.reply(s, fin|ack), portPlain)
		x.mustStayFor(portPlain, time.Hour)
	}},
	{name: "a connection that both sides have closed is forgotten after half a minute", only: tcp, run: func(x *exchange) {
		s := x.begin(portPlain)
		x.mustReachNode(x.goOn(portPlain, fin|ack))
		x.mustReachClient(x.reply(s, fin|ack), portPlain)
		x.mustStayFor(portPlain, 30*time.Second)
	}},
	{name: "a connection that the node has reset is forgotten after half a minute", only: tcp, run: func(x *exchange) {
		s := x.begin(portPlain)
		x.mustReachClient(x.reply(s, rst), portPlain)
		x.mustStayFor(portPlain, 30*time.Second)
	}},
	{name: "a connection that the client has reset is forgotten after two minutes", only: tcp, run: func(x *exchange) {
		x.begin(portPlain)
		x.mustReachNode(x.goOn(portPlain, rst))
		x.mustStayFor(portPlain, 2*time.Minute)
	}},
	{name: "a direct connection is forgotten after a day", only: tcp, run: func(x *exchange) {
		x.fromClient(x.ask(portDirect))
		x.mustStayFor(portDirect, 24*time.Hour)
	}},
	{name: "a datagram that nobody answers is forgotten after half a minute", only: udp, run: func(x *exchange) {
		x.mustReachNode(x.ask(portPlain))
		x.mustStayFor(portPlain, 30*time.Second)
	}},
	{name: "datagrams that go back and forth are forgotten after two minutes", only: udp, run: func(x *exchange) {
		x.begin(portPlain)
		x.mustStayFor(portPlain, 2*time.Minute)
	}},
	{name: "a flow of which only one side speaks stays", run: func(x *exchange) {
		s := x.begin(portPlain)
		for range 10 {
			x.age(20 * time.Second)
			x.mustReachClient(x.reply(s, ack), portPlain)
			x.sweep()
		}
		require.Equal(x, s.from, x.mustReachNode(x.goOn(portPlain, ack)).from)
	}},
	{name: "flows of a frontend that is gone are forgotten at once", run: func(x *exchange) {
		x.begin(portPlain)
		pools, frontends := fixtures()
		x.apply(pools, without(frontends, portPlain)...)
		x.sweep()
		require.False(x, x.knows(portPlain))
	}},
	{name: "an idle limit ends a connection, and both sides are to hear of it", only: tcp, run: func(x *exchange) {
		pools, frontends := fixtures()
		for i := range frontends {
			frontends[i].IdleTimeout = time.Minute
		}
		x.apply(pools, frontends...)
		s := x.begin(portPlain)
		x.age(57 * time.Second)
		_, idle, err := x.backend.kernel.sweep()
		require.NoError(x, err)
		require.NotContains(x, idle, x.key(portPlain))
		x.age(6 * time.Second)
		_, idle, err = x.backend.kernel.sweep()
		require.NoError(x, err)
		require.Contains(x, idle, x.key(portPlain))
		require.Contains(x, idle, tuple{Source: addressOf(s.to.Addr()), Destination: addressOf(s.from.Addr()), SourcePort: portOf(s.to.Port()), DestinationPort: portOf(s.from.Port()),
			Protocol: x.protocol, Family: familyOf(s.to.Addr())})
		x.mustRefuse(x.goOn(portPlain, ack))
	}},
	{name: "an endpoint that has left is forgotten with its last flow, and its number given again", only: tcp, run: func(x *exchange) {
		x.age(30 * time.Hour)
		x.sweep()
		require.Empty(x, x.backend.state.left)
		s := x.begin(portPlain)
		x.applyWithout(s.to.Addr())
		x.sweep()
		require.Len(x, x.backend.state.left, 1, "its connection goes on")
		x.age(30 * time.Hour)
		x.sweep()
		require.Empty(x, x.backend.state.left)
		last := x.backend.state.last.Endpoint
		for i := range x.backend.state.freeEndpoints {
			x.backend.state.freeEndpoints[i].since = time.Now().Add(-time.Hour)
		}
		pools, frontends := fixtures()
		x.apply(pools, frontends...)
		require.Equal(x, last, x.backend.state.last.Endpoint)
		x.begin(portPlain)
	}},
	{name: "connections, packets and bytes are counted by frontend and by endpoint", run: func(x *exchange) {
		before := x.stats()
		s := x.begin(portPlain)
		after := x.stats()
		key := model.FrontendKey{VIP: theVIP[x.v4], Protocol: model.Protocol(x.protocol), Port: portPlain}
		length := uint64(len(x.ask(portPlain).bytes())+len(x.goOn(portPlain, ack).bytes())+len(x.reply(s, ack).bytes())) - 3*14
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

func (b *bench) stats() dataplane.Stats {
	s, err := b.backend.Stats(b.Context())
	require.NoError(b, err)
	return s
}

func minus(a, b dataplane.Counter) dataplane.Counter {
	return dataplane.Counter{Connections: a.Connections - b.Connections, Packets: a.Packets - b.Packets, Bytes: a.Bytes - b.Bytes}
}
