package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onOneEndpoint runs f on a gateway with one endpoint, so that all flows of a protocol compete for the same source ports.
func onOneEndpoint(t *testing.T, ports uint16, f func(b *testGateway)) {
	onGateway(t, func(b *testGateway) {
		b.exchange(true, tcp).applyWithout(otherNode[true])
		b.setPorts(ports)
		f(b)
	})
}

// forged is a client with a forged address: it receives no answers.
func (b *testGateway) forged(n int) *exchange {
	x := b.exchange(true, tcp)
	const ports = 20_000 // outside the range of source ports
	x.client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 100 + byte(n/ports)}), uint16(45_000+n%ports))
	return x
}

// openForged opens a flow without knowledge of the endpoint's answer: none of the client's packets proves the flow.
func (x *exchange) openForged() {
	f := x.firstFrame(portPlain)
	o := x.fromClient(f)
	if o.verdict != sent {
		return
	}
	s := x.mustSend(f, o)
	x.mustReachClient(x.reply(s, syn|ack), portPlain)
	x.received += 4711
	for _, flags := range []uint8{0, ack, fin | ack} {
		x.mustReachNode(x.nextFrame(portPlain, flags))
	}
}

// mustContinue requires that the connection continues in both directions, with the same ports.
func (x *exchange) mustContinue(s seen) {
	require.Equal(x, s.from, x.mustReachNode(x.nextFrame(portPlain, ack)).from)
	x.mustReachClient(x.reply(s, ack), portPlain)
}

func (b *testGateway) entries() (n int) {
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

// A flood of connections with forged addresses takes no source port from a real client, and ends none of its connections.
func TestForgedConnectionsTakeNoPortsFromRealClients(t *testing.T) {
	const ports, honest = 512, 4
	for _, withoutXDP := range []bool{false, true} {
		onOneEndpoint(t, ports, func(b *testGateway) {
			b.withoutXDP = withoutXDP
			type connection struct {
				*exchange
				seen
			}
			var open []connection
			for flood := range 4 {
				for n := range 2 * ports {
					b.forged(flood*2*ports + n).openForged()
				}
				for range honest {
					x := b.exchange(true, tcp)
					open = append(open, connection{x, x.open(portPlain)})
				}
			}
			for _, c := range open {
				c.mustContinue(c.seen)
			}
			b.advance(70 * time.Second)
			b.sweep()
			require.Equal(b, 2*len(open), b.entries(), "flows after a minute")
			for _, c := range open {
				c.mustContinue(c.seen)
			}
		})
	}
}

// fillPorts writes established connections to the endpoint of the flow, on each source port for which take returns true.
func (x *exchange) fillPorts(s seen, take func(port int) bool) {
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

// runtimeOf is the median runtime of the program for a packet that f sends.
func (b *testGateway) runtimeOf(tries int, f func(n int)) time.Duration {
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

// The cost of a SYN does not grow with the number of used ports.
func TestTheFirstPacketOfAConnectionCostsTheSameWhenPortsAreScarce(t *testing.T) {
	needRoot(t)
	const ports, tries = lastPort - firstPort + 1, 101
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	require.NoError(t, err)
	defer func() { require.NoError(t, stats.Close()) }()
	costs := map[string]time.Duration{}
	measure := func(name string, prepare func(b *testGateway)) {
		onOneEndpoint(t, ports, func(b *testGateway) {
			b.withoutXDP = true
			prepare(b)
			served := 0
			costs[name] = b.runtimeOf(tries, func(n int) {
				x := b.forged(4*ports + n)
				if x.fromClient(x.firstFrame(portPlain)).verdict == sent {
					served++
				}
			})
			t.Logf("%-32s %8v, %d of %d served", name, costs[name], served, tries)
		})
	}
	full := func(free int) func(b *testGateway) {
		return func(b *testGateway) {
			x := b.exchange(true, tcp)
			x.fillPorts(x.open(portPlain), func(port int) bool { return free == 0 || port%free != 0 })
		}
	}
	measure("no port is used", func(*testGateway) {})
	measure("a tenth is free", full(10))
	measure("a hundredth is free", full(100))
	measure("all are used", full(0))
	measure("all are used by forged flows", func(b *testGateway) {
		for n := range 2 * ports {
			x := b.forged(n)
			x.fromClient(x.firstFrame(portPlain))
		}
	})
	for name, cost := range costs {
		require.Less(t, cost, 100*costs["no port is used"], "%s", name)
	}
}
