package ebpf

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// isProven tells whether the client's flow is in the table of proven flows.
func (x *exchange) isProven(port uint16) bool {
	var f flow
	return x.backend.kernel.objects.Flows.Lookup(x.key(port), &f) == nil
}

// openAnswered opens a connection up to the answer of the node.
func (x *exchange) openAnswered(port uint16) seen {
	s := x.mustReachNode(x.firstFrame(port))
	x.mustReachClient(x.reply(s, syn|ack), port)
	return s
}

// acknowledgement is a client's frame that acknowledges a number.
func (x *exchange) acknowledgement(number uint32, flags uint8) frame {
	f := x.nextFrame(portPlain, flags)
	f.acked = number
	return f
}

// openMany opens a flow from each of several clients. For each client that is served it returns its exchange, and what the node saw of its first frame.
func (x *exchange) openMany(clients int) (served []*exchange, seen []seen) {
	for range clients {
		y := x.exchange(x.v4, x.protocol)
		f := y.firstFrame(portPlain)
		o := y.fromClient(f)
		if o.verdict != sent {
			continue
		}
		s := y.mustSend(f, o)
		y.mustReachClient(y.reply(s, syn|ack), portPlain)
		y.mustReachNode(y.nextFrame(portPlain, ack))
		served, seen = append(served, y), append(seen, s)
	}
	return served, seen
}

// proofFixtures test which flows are proven, and which are evicted first.
var proofFixtures = []fixture{
	{name: "only an acknowledgement of the node's number proves a connection", only: tcp, run: func(x *exchange) {
		x.openAnswered(portPlain)
		for _, f := range []frame{x.acknowledgement(x.received, 0), x.acknowledgement(x.received, rst|ack), x.acknowledgement(x.received, syn|ack), x.acknowledgement(0, ack),
			x.acknowledgement(x.received-1, ack), x.acknowledgement(x.received+1, ack), x.acknowledgement(x.received+1<<31, ack)} {
			require.Equal(x, sent, x.fromClient(f).verdict)
			require.False(x, x.isProven(portPlain), "acknowledges %d, flags %x", f.acked, f.flags)
		}
		x.mustReachNode(x.acknowledgement(x.received, ack))
		require.True(x, x.isProven(portPlain))
	}},
	{name: "the first data prove a connection if the last packet of the handshake is lost", only: tcp, run: func(x *exchange) {
		x.openAnswered(portPlain)
		const push = 8
		x.mustReachNode(x.acknowledgement(x.received, push|ack))
		require.True(x, x.isProven(portPlain))
	}},
	{name: "a repeated answer of the node with another number replaces the first one", only: tcp, run: func(x *exchange) {
		s := x.openAnswered(portPlain)
		first := x.received
		x.mustReachClient(x.reply(s, syn|ack), portPlain)
		other := x.reply(s, syn|ack)
		other.seq = 4711
		x.mustReachClient(other, portPlain)
		x.mustReachNode(x.acknowledgement(first, ack))
		require.False(x, x.isProven(portPlain))
		x.mustReachNode(x.nextFrame(portPlain, ack))
		require.True(x, x.isProven(portPlain))
	}},
	{name: "data that a node sends before the client's acknowledgement prove a connection as well", only: tcp, run: func(x *exchange) {
		s := x.openAnswered(portPlain)
		x.mustReachClient(x.reply(s, ack), portPlain)
		x.mustReachClient(x.reply(s, fin|ack), portPlain)
		x.mustReachNode(x.acknowledgement(x.received+1, ack))
		require.False(x, x.isProven(portPlain))
		x.mustReachNode(x.acknowledgement(x.received-1, ack))
		require.True(x, x.isProven(portPlain))
	}},
	{name: "numbers far from a node's first one prove nothing", only: tcp, run: func(x *exchange) {
		s := x.openAnswered(portPlain)
		for x.received < 1<<20+4096 || x.received > 1<<31 {
			f := x.reply(s, ack)
			f.payload = make([]byte, 1400)
			x.mustReachClient(f, portPlain)
		}
		x.mustReachNode(x.nextFrame(portPlain, ack))
		require.False(x, x.isProven(portPlain))
		x.mustReachNode(x.acknowledgement(1<<19, ack))
		require.True(x, x.isProven(portPlain))
	}},
	{name: "an acknowledgement of a reset proves nothing", only: tcp, run: func(x *exchange) {
		s := x.mustReachNode(x.firstFrame(portPlain))
		f := x.reply(s, rst)
		f.payload, f.seq = nil, 4711
		x.mustReachClient(f, portPlain)
		x.mustReachNode(x.acknowledgement(4711, ack))
		require.False(x, x.isProven(portPlain))
	}},
	{name: "a connection whose handshake the programs have not seen is proven by later packets", only: tcp, run: func(x *exchange) {
		s := x.openAnswered(portPlain)
		require.NoError(x, x.backend.kernel.objects.Proofs.Delete(x.key(portPlain)))
		x.mustReachNode(x.nextFrame(portPlain, ack))
		require.False(x, x.isProven(portPlain))
		x.mustReachClient(x.reply(s, ack), portPlain)
		x.mustReachNode(x.nextFrame(portPlain, ack))
		require.True(x, x.isProven(portPlain))
	}},
	{name: "a transparent connection whose start was not seen is proven by later packets", only: tcp, run: func(x *exchange) {
		f := x.nextFrame(portTransparent, ack)
		s := x.mustSend(f, x.fromClient(f))
		require.False(x, x.isProven(portTransparent))
		x.mustReachClient(x.reply(s, ack), portTransparent)
		require.Equal(x, sent, x.fromClient(x.nextFrame(portTransparent, ack)).verdict)
		require.True(x, x.isProven(portTransparent))
	}},
	{name: "a proven connection has the lifetime of one even if the table of proven flows is full", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		tables := x.flowTables()
		answers := tuple{Source: addressOf(s.to.Addr()), Destination: addressOf(s.from.Addr()), SourcePort: portOf(s.to.Port()), DestinationPort: portOf(s.from.Port()), Protocol: tcp, Family: familyOf(s.to.Addr())}
		for _, key := range []tuple{x.key(portPlain), answers} {
			require.NoError(x, tables[0].Delete(key))
		}
		x.advance(20 * time.Hour)
		x.sweep()
		require.True(x, x.hasFlow(portPlain))
	}},
	{name: "an unproven connection expires after a minute, whatever a forged client sends", only: tcp, run: func(x *exchange) {
		for _, flags := range []uint8{0, ack, fin | ack, rst} {
			x.client = x.otherClient(1).client
			x.openAnswered(portPlain)
			require.Equal(x, sent, x.fromClient(x.acknowledgement(4711, flags)).verdict)
			x.mustExpireAfter(portPlain, time.Minute)
		}
	}},
	{name: "repeated answers of a node do not extend an unproven connection", only: tcp, run: func(x *exchange) {
		s := x.openAnswered(portPlain)
		x.advance(45 * time.Second)
		x.mustReachClient(x.reply(s, syn|ack), portPlain)
		x.mustExpireAfter(portPlain, 16*time.Second)
	}},
	{name: "an idle timeout ends an unproven connection without a report", only: tcp, run: func(x *exchange) {
		pools, frontends := fixtures()
		for i := range frontends {
			frontends[i].IdleTimeout = 30 * time.Second
		}
		x.apply(pools, frontends...)
		x.openAnswered(portPlain)
		x.advance(33 * time.Second)
		_, told, err := x.backend.kernel.sweep()
		require.NoError(x, err)
		require.NotContains(x, told, x.key(portPlain))
		require.False(x, x.hasFlow(portPlain))
	}},
	{name: "an unproven connection does not count for the limit once the client is silent", only: tcp, run: func(x *exchange) {
		x.applyLimits(1, 0)
		x.openAnswered(portPlain)
		x.mustReachNode(x.acknowledgement(4711, ack))
		x.sweep()
		x.mustDrop(x.otherClient(1).firstFrame(portPlain), "rate")
		x.advance(4 * time.Second)
		x.sweepTwice()
		x.otherClient(1).open(portPlain)
	}},
	{name: "if all ports are used a new flow is dropped, until an ended flow is evicted", run: func(x *exchange) {
		x.setPorts(2)
		defer x.setPorts(lastPort - firstPort + 1)
		flows, ways := x.openMany(24)
		require.Len(x, flows, 4, "two ports towards each of two nodes")
		for i, y := range flows {
			require.Equal(x, ways[i].from, y.mustReachNode(y.nextFrame(portPlain, ack)).from)
		}
		if x.protocol == udp {
			x.advance(6 * time.Second)
			flows, _ = x.openMany(24)
			require.Len(x, flows, 4, "UDP flows that were quiet for five seconds are evicted")
			return
		}
		x.advance(time.Hour)
		flows[0].mustReachClient(flows[0].reply(ways[0], rst), portPlain)
		served, _ := x.openMany(24)
		require.Empty(x, served, "the port cannot be used yet")
		x.advance(3 * time.Second)
		_, seen := x.openMany(24)
		require.Len(x, seen, 1)
		require.Equal(x, ways[0].from, seen[0].from)
	}},
	{name: "if all ports are used unproven connections are evicted, the oldest first", only: tcp, run: func(x *exchange) {
		x.advance(30 * time.Hour)
		x.sweep()
		x.applyWithout(otherNode[x.v4])
		x.setPorts(16)
		defer x.setPorts(lastPort - firstPort + 1)
		kept, ways := x.openMany(12)
		require.Len(x, kept, 12)
		var slow []*exchange
		for range 4 {
			y := x.exchange(x.v4, x.protocol)
			y.openAnswered(portPlain)
			slow = append(slow, y)
			time.Sleep(50 * time.Millisecond) // several units of the clock for the start of flows
		}
		for i := range slow {
			y := x.exchange(x.v4, x.protocol)
			y.openAnswered(portPlain)
			for j, before := range slow {
				require.Equal(x, j > i, before.hasFlow(portPlain), "connection %d after %d new ones", j, i+1)
			}
		}
		for i, y := range kept {
			require.Equal(x, ways[i].from, y.mustReachNode(y.nextFrame(portPlain, ack)).from)
		}
	}},
}

// An earlier version has recorded no acknowledgement numbers: connections continue, and a connection during its handshake is proven by later packets.
func TestConnectionsOfAVersionWithoutProofsContinue(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.serveFixtures()
		open, opening := b.exchange(true, tcp), b.exchange(true, tcp)
		way := open.open(portPlain)
		waiting := opening.openAnswered(portPlain)
		proofs := filepath.Join(b.backend.kernel.dir, "proofs")
		require.NoError(b, b.backend.Close(b.Context(), false))
		require.NoError(b, os.Remove(proofs))
		b.start(b.options())
		b.sweep()
		open.mustContinue(way)
		require.Equal(b, waiting.from, opening.mustReachNode(opening.nextFrame(portPlain, ack)).from)
		opening.mustContinue(waiting)
		opening.mustContinue(waiting)
		require.True(b, opening.isProven(portPlain))
	})
}
