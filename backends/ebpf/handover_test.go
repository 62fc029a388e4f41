package ebpf

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/oracle"
	"kubelb.k8c.io/core/model"
)

// TestRandomPacketsAreRedirected sends one redirectDivisor-th of KUBELB_PACKETS, or of defaultPackets.
const redirectDivisor = 50

// maxRedirects is the maximum number of redirects of a packet.
const maxRedirects = 3

// TestRandomPacketsAreRedirected sends packets of unknown connections, as clients and other gateways do. Some packets have
// bytes changed, cut off or added. A redirected packet changes only in its TTL.
func TestRandomPacketsAreRedirected(t *testing.T) {
	n, seed := defaultPackets, uint64(time.Now().UnixNano())
	for name, into := range map[string]func(uint64){"KUBELB_PACKETS": func(v uint64) { n = int(v) }, "KUBELB_SEED": func(v uint64) { seed = v }} {
		if text := os.Getenv(name); text != "" {
			v, err := strconv.ParseUint(text, 10, 64)
			require.NoError(t, err)
			into(v)
		}
	}
	t.Logf("seed %d", seed)
	onGateway(t, func(b *testGateway) {
		pools, frontends := fixtures()
		for i := range frontends {
			if frontends[i].Protocol == model.TCP && frontends[i].Forwarding == model.NAT {
				frontends[i].Redirect = model.Redirect{Next: theNode[frontends[i].VIP.Is4()], Limit: maxRedirects}
			}
		}
		b.apply(pools, frontends...)
		r := &packetGenerator{testGateway: b, Rand: rand.New(rand.NewPCG(seed, 2)), counts: map[string]int{}, flows: map[flowKey]flowState{}, owners: map[nodeFlow]flowKey{}, clients: map[netip.Addr]bool{}, oracle: oracle.New()}
		handed := 0
		for i := range n / redirectDivisor {
			if i%50 == 0 {
				r.refillBudget()
			}
			if r.redirectOne() {
				handed++
			}
		}
		require.Positive(b, handed)
		t.Logf("%d packets, %d of them handed over; counted: %v", n/redirectDivisor, handed, b.drops())
	})
}

// redirectOne runs the programs on one packet, and returns whether it was redirected.
func (r *packetGenerator) redirectOne() bool {
	v4 := r.IntN(2) == 0
	ports := []uint16{portPlain, portEmpty, portRanged, portSticky, portOther}
	f := r.variant(frame{from: netip.AddrPortFrom(theClient[v4], 1+uint16(r.IntN(65535))), to: netip.AddrPortFrom(theVIP[v4], ports[r.IntN(len(ports))]), toMAC: r.front.HardwareAddr, protocol: tcp})
	f.flags = []uint8{ack, ack, fin | ack, rst, rst | ack, syn | ack, 0}[r.IntN(7)]
	if r.IntN(4) > 0 {
		f.ttl = 255 - uint8(r.IntN(18))
	}
	bytes := f.bytes()
	if r.IntN(2) == 0 {
		bytes = r.mutate(bytes)
	}
	if len(bytes) < 14+40 {
		return false // the kernel runs no tc program on some frames this short
	}
	in, o := dissect(bytes), r.receive(r.front, bytes)
	if o.verdict != sent {
		return false
	}
	out := dissect(o.frame)
	if in.flags&(syn|ack) == syn || in.protocol != tcp || out.to != in.to || in.to.Port() == portDirect || len(in.errors) > 0 {
		require.False(r, len(in.errors) == 0 && len(out.errors) > 0, "%x became %x", bytes, o.frame)
		return false // it begins a flow, is for a direct frontend, or is malformed
	}
	asked := uint8(0)
	if in.ttl >= 255-model.MaxRedirects {
		asked = 255 - in.ttl
	}
	require.Empty(r, out.errors, "%x became %x", bytes, o.frame)
	require.Equal(r, 255-asked-1, out.ttl, "%x became %x", bytes, o.frame)
	require.LessOrEqual(r, 255-out.ttl, uint8(maxRedirects), "the maximum")
	require.Equal(r, in.from, out.from)
	require.Equal(r, in.payload, out.payload)
	require.Equal(r, []any{in.flags, in.seq, in.acked}, []any{out.flags, out.seq, out.acked})
	return true
}
