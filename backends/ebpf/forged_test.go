package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onOneEndpoint runs f where one endpoint serves all, so that all flows of a protocol compete for the same source ports.
func onOneEndpoint(t *testing.T, ports uint16, f func(b *bench)) {
	onBench(t, func(b *bench) {
		b.exchange(true, tcp).applyWithout(otherNode[true])
		b.slice(ports)
		f(b)
	})
}

// forged is a client of an address that its sender does not have: it hears no answer.
func (b *bench) forged(n int) *exchange {
	x := b.exchange(true, tcp)
	const ports = 20_000 // none of the slice
	x.client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 100 + byte(n/ports)}), uint16(45_000+n%ports))
	return x
}

// forge opens a flow as far as somebody can who hears no answer: the endpoint answers, and the client goes on with what proves nothing.
func (x *exchange) forge() {
	f := x.ask(portPlain)
	o := x.fromClient(f)
	if o.verdict != sent {
		return
	}
	s := x.mustSend(f, o)
	x.mustReachClient(x.reply(s, syn|ack), portPlain)
	x.heard += 4711
	for _, flags := range []uint8{0, ack, fin | ack} {
		x.mustReachNode(x.goOn(portPlain, flags))
	}
}

// mustGoOn requires that the connection goes on in both directions, between the ports where it began.
func (x *exchange) mustGoOn(s seen) {
	require.Equal(x, s.from, x.mustReachNode(x.goOn(portPlain, ack)).from)
	x.mustReachClient(x.reply(s, ack), portPlain)
}

func (b *bench) entries() (n int) {
	for _, m := range b.flowTables() {
		var key tuple
		var f flow
		entries := m.Iterate()
		for entries.Next(&key, &f) {
			n++
		}
		require.NoError(b, entries.Err())
	}
	return n
}

// A flood of connections whose clients do not exist takes no source port from a client that does, and ends none of its connections.
func TestForgedConnectionsTakeNoPortsFromHonestOnes(t *testing.T) {
	const ports, honest = 512, 4
	for _, withoutXDP := range []bool{false, true} {
		onOneEndpoint(t, ports, func(b *bench) {
			b.withoutXDP = withoutXDP
			type connection struct {
				*exchange
				seen
			}
			var open []connection
			for flood := range 4 {
				for n := range 2 * ports {
					b.forged(flood*2*ports + n).forge()
				}
				for range honest {
					x := b.exchange(true, tcp)
					open = append(open, connection{x, x.begin(portPlain)})
				}
			}
			for _, c := range open {
				c.mustGoOn(c.seen)
			}
			b.age(70 * time.Second)
			b.sweep()
			require.Equal(b, 2*len(open), b.entries(), "what is left after a minute")
			for _, c := range open {
				c.mustGoOn(c.seen)
			}
		})
	}
}

// fill writes connections that go on towards the endpoint of the flow, at each port of the slice for which take says so.
func (x *exchange) fill(s seen, take func(port int) bool) {
	var keys []tuple
	var values []flow
	var known flow
	require.NoError(x, x.backend.kernel.objects.Flows.Lookup(x.key(portPlain), &known))
	for n := range int(x.backend.kernel.settings.Ports) {
		port := portOf(uint16(firstPort + n))
		if !take(n) || port.number() == s.from.Port() {
			continue
		}
		key, there, back := x.key(portPlain), known, known
		key.Source = addressOf(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}))
		there.SourcePort = port
		answers := tuple{Source: there.Destination, Destination: there.Source, SourcePort: there.DestinationPort, DestinationPort: port, Protocol: x.protocol, Family: key.Family}
		back.Source, back.Destination, back.SourcePort, back.DestinationPort, back.State = key.Destination, key.Source, key.DestinationPort, key.SourcePort, stateReply
		keys, values = append(keys, key, answers), append(values, there, back)
	}
	if len(keys) > 0 {
		_, err := x.backend.kernel.objects.Flows.BatchUpdate(keys, values, nil)
		require.NoError(x, err)
	}
}

// costOf is what the program takes for a packet that f sends, in the middle of so many tries.
func (b *bench) costOf(tries int, f func(n int)) time.Duration {
	var times []time.Duration
	for n := range tries {
		before, err := b.backend.kernel.objects.LbTc.Stats()
		require.NoError(b, err)
		f(n)
		after, err := b.backend.kernel.objects.LbTc.Stats()
		require.NoError(b, err)
		times = append(times, after.Runtime-before.Runtime)
	}
	return median(times)
}

// What a SYN costs does not grow with the number of ports that are taken.
func TestTheFirstPacketOfAConnectionCostsTheSameWhenPortsAreScarce(t *testing.T) {
	const ports, tries = lastPort - firstPort + 1, 101
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	require.NoError(t, err)
	defer func() { require.NoError(t, stats.Close()) }()
	costs := map[string]time.Duration{}
	measure := func(name string, prepare func(b *bench)) {
		onOneEndpoint(t, ports, func(b *bench) {
			b.withoutXDP = true
			prepare(b)
			served := 0
			costs[name] = b.costOf(tries, func(n int) {
				x := b.forged(4*ports + n)
				if x.fromClient(x.ask(portPlain)).verdict == sent {
					served++
				}
			})
			t.Logf("%-32s %8v, %d of %d served", name, costs[name], served, tries)
		})
	}
	full := func(free int) func(b *bench) {
		return func(b *bench) {
			x := b.exchange(true, tcp)
			x.fill(x.begin(portPlain), func(port int) bool { return free == 0 || port%free != 0 })
		}
	}
	measure("no port is taken", func(*bench) {})
	measure("a tenth is free", full(10))
	measure("a hundredth is free", full(100))
	measure("all are taken", full(0))
	measure("all are taken by forged ones", func(b *bench) {
		for n := range 2 * ports {
			x := b.forged(n)
			x.fromClient(x.ask(portPlain))
		}
	})
	for name, cost := range costs {
		require.Less(t, cost, 100*costs["no port is taken"], "%s", name)
	}
}
