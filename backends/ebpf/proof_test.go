package ebpf

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// isKept tells whether the client's flow is kept for good.
func (x *exchange) isKept(port uint16) bool {
	var f flow
	return x.backend.kernel.objects.Flows.Lookup(x.key(port), &f) == nil
}

// answered opens a connection to the point where the node has answered, and the client may not have heard it.
func (x *exchange) answered(port uint16) seen {
	s := x.mustReachNode(x.ask(port))
	x.mustReachClient(x.reply(s, syn|ack), port)
	return s
}

// acknowledges is a frame of the client's that acknowledges a number.
func (x *exchange) acknowledges(number uint32, flags uint8) frame {
	f := x.goOn(portPlain, flags)
	f.acked = number
	return f
}

// tryAll has so many clients begin a flow, as far as they come, and returns those that are served.
func (x *exchange) tryAll(clients int) (served []*exchange, seen []seen) {
	for range clients {
		y := x.exchange(x.v4, x.protocol)
		f := y.ask(portPlain)
		o := y.fromClient(f)
		if o.verdict != sent {
			continue
		}
		s := y.mustSend(f, o)
		y.mustReachClient(y.reply(s, syn|ack), portPlain)
		y.mustReachNode(y.goOn(portPlain, ack))
		served, seen = append(served, y), append(seen, s)
	}
	return served, seen
}

// proofFixtures are about which flows are worth to be kept, and which go first.
var proofFixtures = []fixture{
	{name: "an acknowledgement of the node's number proves a connection, and nothing else does", only: tcp, run: func(x *exchange) {
		x.answered(portPlain)
		for _, f := range []frame{x.acknowledges(x.heard, 0), x.acknowledges(x.heard, rst|ack), x.acknowledges(x.heard, syn|ack), x.acknowledges(0, ack),
			x.acknowledges(x.heard-1, ack), x.acknowledges(x.heard+1, ack), x.acknowledges(x.heard+1<<31, ack)} {
			require.Equal(x, sent, x.fromClient(f).verdict)
			require.False(x, x.isKept(portPlain), "acknowledges %d, flags %x", f.acked, f.flags)
		}
		x.mustReachNode(x.acknowledges(x.heard, ack))
		require.True(x, x.isKept(portPlain))
	}},
	{name: "the first data prove a connection whose last packet of the handshake is lost", only: tcp, run: func(x *exchange) {
		x.answered(portPlain)
		const push = 8
		x.mustReachNode(x.acknowledges(x.heard, push|ack))
		require.True(x, x.isKept(portPlain))
	}},
	{name: "a node that answers again with the same number, or another one, is heard", only: tcp, run: func(x *exchange) {
		s := x.answered(portPlain)
		first := x.heard
		x.mustReachClient(x.reply(s, syn|ack), portPlain)
		other := x.reply(s, syn|ack)
		other.seq = 4711
		x.mustReachClient(other, portPlain)
		x.mustReachNode(x.acknowledges(first, ack))
		require.False(x, x.isKept(portPlain))
		x.mustReachNode(x.goOn(portPlain, ack))
		require.True(x, x.isKept(portPlain))
	}},
	{name: "what a node sends before it has heard of the client proves a connection as well", only: tcp, run: func(x *exchange) {
		s := x.answered(portPlain)
		x.mustReachClient(x.reply(s, ack), portPlain)
		x.mustReachClient(x.reply(s, fin|ack), portPlain)
		x.mustReachNode(x.acknowledges(x.heard+1, ack))
		require.False(x, x.isKept(portPlain))
		x.mustReachNode(x.acknowledges(x.heard-1, ack))
		require.True(x, x.isKept(portPlain))
	}},
	{name: "numbers far from a node's first one prove nothing", only: tcp, run: func(x *exchange) {
		s := x.answered(portPlain)
		for x.heard < 1<<20+4096 || x.heard > 1<<31 {
			f := x.reply(s, ack)
			f.payload = make([]byte, 1400)
			x.mustReachClient(f, portPlain)
		}
		x.mustReachNode(x.goOn(portPlain, ack))
		require.False(x, x.isKept(portPlain))
		x.mustReachNode(x.acknowledges(1<<19, ack))
		require.True(x, x.isKept(portPlain))
	}},
	{name: "a reset has the number of what it answers, and proves nothing", only: tcp, run: func(x *exchange) {
		s := x.mustReachNode(x.ask(portPlain))
		f := x.reply(s, rst)
		f.payload, f.seq = nil, 4711
		x.mustReachClient(f, portPlain)
		x.mustReachNode(x.acknowledges(4711, ack))
		require.False(x, x.isKept(portPlain))
	}},
	{name: "a connection whose handshake the programs have not seen is proven by what follows", only: tcp, run: func(x *exchange) {
		s := x.answered(portPlain)
		require.NoError(x, x.backend.kernel.objects.Proofs.Delete(x.key(portPlain)))
		x.mustReachNode(x.goOn(portPlain, ack))
		require.False(x, x.isKept(portPlain))
		x.mustReachClient(x.reply(s, ack), portPlain)
		x.mustReachNode(x.goOn(portPlain, ack))
		require.True(x, x.isKept(portPlain))
	}},
	{name: "a transparent connection that is taken up in its middle is proven by what follows", only: tcp, run: func(x *exchange) {
		f := x.goOn(portTransparent, ack)
		s := x.mustSend(f, x.fromClient(f))
		require.False(x, x.isKept(portTransparent))
		x.mustReachClient(x.reply(s, ack), portTransparent)
		require.Equal(x, sent, x.fromClient(x.goOn(portTransparent, ack)).verdict)
		require.True(x, x.isKept(portTransparent))
	}},
	{name: "a connection that is proven is kept as one where the table for good is full", only: tcp, run: func(x *exchange) {
		s := x.begin(portPlain)
		tables := x.flowTables()
		answers := tuple{Source: addressOf(s.to.Addr()), Destination: addressOf(s.from.Addr()), SourcePort: portOf(s.to.Port()), DestinationPort: portOf(s.from.Port()), Protocol: tcp, Family: familyOf(s.to.Addr())}
		for _, key := range []tuple{x.key(portPlain), answers} {
			require.NoError(x, tables[0].Delete(key))
		}
		x.age(20 * time.Hour)
		x.sweep()
		require.True(x, x.knows(portPlain))
	}},
	{name: "a connection that no client has proven is forgotten after a minute, whatever is made up for it", only: tcp, run: func(x *exchange) {
		for _, flags := range []uint8{0, ack, fin | ack, rst} {
			x.client = x.other(1).client
			x.answered(portPlain)
			require.Equal(x, sent, x.fromClient(x.acknowledges(4711, flags)).verdict)
			x.mustStayFor(portPlain, time.Minute)
		}
	}},
	{name: "what a node repeats keeps no connection that no client has proven", only: tcp, run: func(x *exchange) {
		s := x.answered(portPlain)
		x.age(45 * time.Second)
		x.mustReachClient(x.reply(s, syn|ack), portPlain)
		x.mustStayFor(portPlain, 16*time.Second)
	}},
	{name: "an idle limit ends a connection that no client has proven, and nobody hears of it", only: tcp, run: func(x *exchange) {
		pools, frontends := fixtures()
		for i := range frontends {
			frontends[i].IdleTimeout = 30 * time.Second
		}
		x.apply(pools, frontends...)
		x.answered(portPlain)
		x.age(33 * time.Second)
		_, told, err := x.backend.kernel.sweep()
		require.NoError(x, err)
		require.NotContains(x, told, x.key(portPlain))
		require.False(x, x.knows(portPlain))
	}},
	{name: "a connection that no client has proven makes room in a limit once nothing comes of it", only: tcp, run: func(x *exchange) {
		x.limited(1, 0)
		x.answered(portPlain)
		x.mustReachNode(x.acknowledges(4711, ack))
		x.sweep()
		x.mustDrop(x.other(1).ask(portPlain), "rate")
		x.age(4 * time.Second)
		x.sweep()
		x.other(1).begin(portPlain)
	}},
	{name: "when all ports are taken by flows that go on, a new one is dropped; one that has ended makes room", run: func(x *exchange) {
		x.slice(2)
		defer x.slice(lastPort - firstPort + 1)
		flows, ways := x.tryAll(24)
		require.Len(x, flows, 4, "two ports towards each of two nodes")
		for i, y := range flows {
			require.Equal(x, ways[i].from, y.mustReachNode(y.goOn(portPlain, ack)).from)
		}
		if x.protocol == udp {
			x.age(6 * time.Second)
			flows, _ = x.tryAll(24)
			require.Len(x, flows, 4, "datagrams of clients that say nothing for five seconds make room")
			return
		}
		x.age(time.Hour)
		flows[0].mustReachClient(flows[0].reply(ways[0], rst), portPlain)
		served, _ := x.tryAll(24)
		require.Empty(x, served, "the port rests")
		x.age(3 * time.Second)
		_, seen := x.tryAll(24)
		require.Len(x, seen, 1)
		require.Equal(x, ways[0].from, seen[0].from)
	}},
	{name: "when all ports are taken, connections that no client has proven make room, the oldest first", only: tcp, run: func(x *exchange) {
		x.age(30 * time.Hour)
		x.sweep()
		x.applyWithout(otherNode[x.v4])
		x.slice(16)
		defer x.slice(lastPort - firstPort + 1)
		kept, ways := x.tryAll(12)
		require.Len(x, kept, 12)
		var slow []*exchange
		for range 4 {
			y := x.exchange(x.v4, x.protocol)
			y.answered(portPlain)
			slow = append(slow, y)
			time.Sleep(50 * time.Millisecond) // a few ticks of the clock that tells which is older
		}
		for i := range slow {
			y := x.exchange(x.v4, x.protocol)
			y.answered(portPlain)
			for j, before := range slow {
				require.Equal(x, j > i, before.knows(portPlain), "number %d of those that were there, after %d new ones", j, i+1)
			}
		}
		for i, y := range kept {
			require.Equal(x, ways[i].from, y.mustReachNode(y.goOn(portPlain, ack)).from)
		}
	}},
}

// What an earlier version of the programs left has no numbers: connections go on, and those whose handshake was under way are kept once something follows.
func TestConnectionsOfAVersionWithoutProofsGoOn(t *testing.T) {
	onBench(t, func(b *bench) {
		b.serveFixtures()
		open, opening := b.exchange(true, tcp), b.exchange(true, tcp)
		way := open.begin(portPlain)
		waiting := opening.answered(portPlain)
		proofs := filepath.Join(b.backend.kernel.dir, "proofs")
		require.NoError(b, b.backend.Close(b.Context(), false))
		require.NoError(b, os.Remove(proofs))
		b.start(b.options())
		b.sweep()
		open.mustGoOn(way)
		require.Equal(b, waiting.from, opening.mustReachNode(opening.goOn(portPlain, ack)).from)
		opening.mustGoOn(waiting)
		opening.mustGoOn(waiting)
		require.True(b, opening.isKept(portPlain))
	})
}
