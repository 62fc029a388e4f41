package ebpf

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/oracle"
	"kubelb.k8c.io/core/model"
)

// defaultPackets is the number of random packets of a test. KUBELB_PACKETS sets another number.
const defaultPackets = 300_000

// TestRandomPacketsGoWhereTheOracleSays sends packets of flows that begin, continue and end. Some packets have bytes changed, cut off or
// added, and pools change during the test. Each packet that the programs send must be valid. Its destination must be the one that the oracle, or the
// history of the flow, expects.
func TestRandomPacketsGoWhereTheOracleSays(t *testing.T) {
	n := defaultPackets
	if text := os.Getenv("KUBELB_PACKETS"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("KUBELB_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed %d", seed)
	onGateway(t, func(b *testGateway) {
		r := &packetGenerator{testGateway: b, Rand: rand.New(rand.NewPCG(seed, 1)), counts: map[string]int{}}
		for i := 0; i < n; {
			if i%100_000 == 0 {
				r.reset()
			}
			if i%20_000 == 0 {
				r.changePools()
			}
			if i%50 == 0 {
				r.refillBudget()
			}
			for !r.sendOne() {
			}
			i++
		}
		for _, what := range slices.Sorted(maps.Keys(r.counts)) {
			t.Logf("%9d %s", r.counts[what], what)
		}
		t.Logf("%d packets; XDP served %d of %d; counted: %v", n, b.xdpHandled, b.xdpRan, b.drops())
	})
}

// flowKey is a flow as its client sees it.
type flowKey struct {
	protocol uint8
	from, to netip.AddrPort
}

// nodeFlow is a flow as its node sees it.
type nodeFlow struct {
	protocol     uint8
	source, node netip.AddrPort
}

// flowState is the state of a flow behind the gateway.
type flowState struct {
	source, node netip.AddrPort
	// closed: one side has sent FIN or RST, so that another flow may get its port.
	closed bool
	// received is the sequence number after the node's last packet.
	received uint32
	// pools is the number of changes of pools at its last packet.
	pools int
}

// packetGenerator generates packets, and records the expected state.
type packetGenerator struct {
	*testGateway
	*rand.Rand
	oracle oracle.State
	flows  map[flowKey]flowState
	owners map[nodeFlow]flowKey
	// clients are all clients that have begun a flow.
	clients map[netip.Addr]bool
	recent  []flowKey
	counts  map[string]int
	pools   int
}

// reset deletes all flows. Otherwise the programs would evict some, and the generator does not know which ones.
func (r *packetGenerator) reset() {
	r.advance(30 * time.Hour)
	r.sweep()
	r.flows, r.owners, r.clients, r.recent, r.oracle = map[flowKey]flowState{}, map[nodeFlow]flowKey{}, map[netip.Addr]bool{}, nil, oracle.New()
}

// changePools applies pools with other endpoints. One port belongs to another tenant, who has a node of its own.
func (r *packetGenerator) changePools() {
	pools, frontends := fixtures()
	for _, v4 := range []bool{true, false} {
		otherPool := model.PoolID(fmt.Sprintf("b/nodes.%t", v4))
		pools = append(pools, model.Pool{ID: otherPool, Tenant: "b", Endpoints: []model.Endpoint{{ID: "n3", Address: otherTenantNode[v4], Weight: 1}}})
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			frontends = append(frontends, model.Frontend{FrontendKey: model.FrontendKey{VIP: theVIP[v4], Protocol: protocol, Port: portOther}, Owner: model.ObjectName{Namespace: "tenant-b", Name: "web"},
				Tenant: "b", Pool: otherPool, TargetPort: portOfNodes})
		}
	}
	for i := range pools {
		if len(pools[i].Endpoints) > 1 && r.IntN(3) > 0 {
			gone := r.IntN(2)
			pools[i].Endpoints = slices.Delete(slices.Clone(pools[i].Endpoints), gone, gone+1)
		}
	}
	r.pools++
	r.apply(pools, frontends...)
	r.oracle = r.oracle.Apply(model.Snapshot{Pools: pools, Frontends: frontends})
}

// sendOne runs the programs on one packet, unless the packet is too short.
func (r *packetGenerator) sendOne() bool {
	f, at := r.validFrame()
	bytes := f.bytes()
	mutated := r.IntN(2) == 0
	if mutated {
		bytes = r.mutate(bytes)
	}
	in := r.front
	if at == theNode[true] {
		in = r.back
	}
	if len(bytes) < 14+40 {
		return false // the kernel runs no tc program on some frames this short
	}
	o := r.receive(in, bytes)
	r.counts[fmt.Sprintf("%s, mutated %t", o.verdict, mutated)]++
	r.check(bytes, o, in == r.back)
	return true
}

// validFrame returns a frame of a client, or of a node if the address is a node's.
func (r *packetGenerator) validFrame() (frame, netip.Addr) {
	if len(r.recent) > 0 && r.IntN(3) == 0 {
		key := r.recent[r.IntN(len(r.recent))]
		if p, known := r.flows[key]; known {
			return r.variant(frame{from: p.node, to: p.source, toMAC: r.back.HardwareAddr, protocol: key.protocol}), theNode[true]
		}
	}
	v4 := r.IntN(2) == 0
	client := theClient[v4]
	for range r.IntN(12) {
		client = client.Next()
	}
	ports := []uint16{portPlain, portPlain, portPlain, portEmpty, portRanged, portSticky, portTransparent, portDirect, portOther}
	to := theVIP[v4]
	if r.IntN(50) == 0 {
		to = notVIP[v4]
	}
	f := frame{from: netip.AddrPortFrom(client, 40000+uint16(r.IntN(8))), to: netip.AddrPortFrom(to, ports[r.IntN(len(ports))]), toMAC: r.front.HardwareAddr, protocol: [2]uint8{tcp, udp}[r.IntN(2)]}
	out := r.variant(f)
	if p, known := r.flows[flowKey{f.protocol, f.from, f.to}]; known && r.IntN(2) == 0 {
		out.acked = p.received
	}
	return out, netip.Addr{}
}

// variant sets contents and flags, and sometimes options, fragmentation or another type of packet.
func (r *packetGenerator) variant(f frame) frame {
	f.flags = []uint8{syn, syn, syn | ack, ack, ack, ack, ack, fin | ack, rst, rst | ack}[r.IntN(10)]
	f.seq, f.acked, f.id = r.Uint32(), r.Uint32(), r.Uint32()
	f.payload = make([]byte, r.IntN(40))
	for i := range f.payload {
		f.payload[i] = byte(r.Uint32())
	}
	f.mayFragment, f.noChecksum = r.IntN(2) == 0, r.IntN(8) == 0 && f.v4()
	switch r.IntN(24) {
	case 0:
		f.options, f.extension = []byte{1, 1, 1, 0}, 60
		if !f.v4() {
			f.options = []byte{f.protocol, 0, 1, 4, 0, 0, 0, 0}
		}
	case 1:
		f.payload, f.more = make([]byte, 32), true
	case 2:
		f.offset, f.raw = 32+8, make([]byte, 24)
	case 3:
		f.ttl = 1 + uint8(r.IntN(2))
	case 4:
		f.payload = make([]byte, 1000+r.IntN(400)) // a packet that is too big would begin a flow, and not reach the node
	case 5:
		quoted := f
		quoted.from, quoted.to = f.to, f.from
		packet := quoted.bytes()[14:]
		kind := icmpErrors(f.v4())[r.IntN(4)]
		f.payload, f.protocol, f.options = nil, icmp6, nil
		if f.v4() {
			f.protocol = icmp4
			f.raw = icmpMessage(kind[0], kind[1], r.Uint32(), packet, nil)
		} else {
			f.raw = icmpMessage(kind[0], kind[1], r.Uint32(), packet, &f)
		}
	}
	return f
}

// mutate changes bytes, cuts some off or adds some.
func (r *packetGenerator) mutate(bytes []byte) []byte {
	bytes = slices.Clone(bytes)
	for range 1 + r.IntN(3) {
		switch r.IntN(8) {
		case 0:
			bytes = bytes[:max(14, len(bytes)-r.IntN(24))]
		case 1:
			bytes = append(bytes, make([]byte, r.IntN(8))...)
		case 2:
			if i := 14 + r.IntN(len(bytes)-13); i+2 <= len(bytes) {
				binary.BigEndian.PutUint16(bytes[i:], uint16(r.Uint32()))
			}
		default:
			// In the headers.
			bytes[min(len(bytes)-1, r.IntN(80))] ^= 1 << r.IntN(8)
		}
	}
	return bytes
}

// check requires that the outcome is allowed.
func (r *packetGenerator) check(bytes []byte, o outcome, fromNode bool) {
	in := dissect(bytes)
	if o.verdict != sent && in.flags&(syn|fin|rst) != 0 {
		// It may have ended its flow, although it was not forwarded.
		r.close(keyOf(in))
		r.close(r.owners[nodeFlow{in.protocol, in.to, in.from}])
	}
	if o.verdict == left || o.verdict == dropping {
		r.checkNoOutput(bytes, in, o, fromNode)
		return
	}
	out := dissect(o.frame)
	if len(in.errors) == 0 {
		require.Empty(r, out.errors, "%x became %x", bytes, o.frame)
	}
	if o.verdict == answered {
		require.True(r, len(out.errors) == 0 || len(in.errors) > 0, "%x was answered %x", bytes, o.frame)
		require.Equal(r, in.from.Addr(), out.to.Addr())
		require.Equal(r, in.to.Addr(), out.from.Addr())
		return
	}
	if in.protocol == icmp4 || in.protocol == icmp6 {
		require.True(r, r.isPeer(out.to.Addr()), "an error goes to %s", out.to)
		return
	}
	require.False(r, !in.later && in.ttl != 0 && out.ttl != in.ttl-1 && out.to != in.to, "hops: %d became %d", in.ttl, out.ttl)
	if hasWrongLength(in) || in.later {
		require.True(r, r.isPeer(out.to.Addr()), "%x goes to %s", bytes, out.to)
		return
	}
	require.Equal(r, in.payload, out.payload)
	if fromNode || in.to.Addr() != theVIP[in.to.Addr().Is4()] {
		r.checkAnswer(in, out)
		return
	}
	r.checkRequest(in, out)
}

func (r *packetGenerator) close(key flowKey) {
	if p, known := r.flows[key]; known {
		p.closed = true
		r.flows[key] = p
	}
}

// hasWrongLength tells whether a length is wrong, so that the rest of the packet is unknown.
func hasWrongLength(s seen) bool {
	return slices.ContainsFunc(s.errors, func(w string) bool { return w != "checksum" && w != "IPv4 header checksum" && w != "ICMP checksum" })
}

// isPeer tells whether packets may be sent to this address.
func (r *packetGenerator) isPeer(a netip.Addr) bool {
	v4 := a.Is4()
	if a == theNode[v4] || a == otherNode[v4] || a == otherTenantNode[v4] || a == theVIP[v4] {
		return true
	}
	return r.clients[a]
}

// checkNoOutput requires a reason why a valid packet was not forwarded.
func (r *packetGenerator) checkNoOutput(bytes []byte, in seen, o outcome, fromNode bool) {
	if len(in.errors) > 0 || in.later || fromNode || (in.protocol != tcp && in.protocol != udp) || !slices.Equal(in.toMAC, r.front.HardwareAddr) || in.to.Addr() != theVIP[in.to.Addr().Is4()] {
		return
	}
	if o.verdict == left {
		require.Fail(r, "a packet for a VIP is left to the host", "%+v", in)
	}
	d := r.oracle.Decide(r.flowOf(in))
	known, seen := r.flows[keyOf(in)]
	serves := d.Verdict == oracle.Forwarded && !(in.protocol == tcp && in.flags&(syn|ack) != syn && !d.KeepsClient && (!seen || known.closed))
	require.False(r, serves && in.ttl > 1 && r.isForeign(in.from.Addr()), "dropped: %x, %+v, although the oracle says %v", bytes, in, d)
}

// isForeign tells whether the address may be a client's, and not the gateway's own.
func (r *packetGenerator) isForeign(a netip.Addr) bool {
	v4 := a.Is4()
	return a != theVIP[v4] && a != theGateway[v4] && a.IsGlobalUnicast()
}

func keyOf(in seen) flowKey { return flowKey{in.protocol, in.from, in.to} }

func (r *packetGenerator) flowOf(in seen) oracle.Flow {
	return oracle.Flow{Protocol: model.Protocol(in.protocol), Client: in.from, To: in.to}
}

// checkRequest checks the forwarding of a client's packet to a VIP.
func (r *packetGenerator) checkRequest(in, out seen) {
	key := keyOf(in)
	if in.to.Port() == portDirect {
		require.Equal(r, in.to, out.to)
		require.Equal(r, in.from, out.from)
		require.Equal(r, in.ttl, out.ttl)
		return
	}
	require.Equal(r, in.to.Port() == portOther, out.to.Addr() == otherTenantNode[in.to.Addr().Is4()], "%+v goes to another tenant's node: %+v", in, out)
	r.counts[fmt.Sprintf("to the other tenant: %t", in.to.Port() == portOther)]++
	known, before := r.flows[key]
	ends := in.protocol == tcp && in.flags&(fin|rst) != 0
	first := in.protocol == tcp && in.flags&(syn|ack) == syn
	if before && in.protocol == tcp && !known.closed && !first {
		require.Equal(r, known.node, out.to, "a connection's node")
		require.Equal(r, known.source, out.from, "a connection's source")
	} else if before && out.to == known.node && out.from == known.source {
		// The flow continues, even if its endpoint is removed.
		require.True(r, in.protocol == tcp || slices.Contains(r.oracle.Decide(r.flowOf(in)).Endpoints, out.to.Addr()), "datagrams still go to %s", out.to)
	} else {
		d := r.oracle.Decide(r.flowOf(in))
		require.Equal(r, oracle.Forwarded, d.Verdict, "%+v", in)
		require.Contains(r, d.Endpoints, out.to.Addr(), "%+v", in)
		require.EqualValues(r, portOfNodes, out.to.Port())
		if d.KeepsClient {
			require.Equal(r, in.from, out.from)
		} else {
			require.Equal(r, theGateway[in.to.Addr().Is4()], out.from.Addr())
		}
		if owner, taken := r.owners[nodeFlow{key.protocol, out.from, out.to}]; taken && owner != key {
			if p := r.flows[owner]; p.source == out.from && p.node == out.to {
				// A UDP flow may have moved to another endpoint since.
				require.True(r, p.closed || key.protocol == udp && p.pools != r.pools, "%v takes the place of %v, which goes on", key, owner)
				delete(r.flows, owner)
			}
		}
		known = flowState{source: out.from, node: out.to, received: known.received}
		r.oracle = r.remember(in, out)
	}
	known.closed, known.pools = known.closed && !first || ends, r.pools
	r.flows[key], r.clients[in.from.Addr()] = known, true
	r.owners[nodeFlow{key.protocol, out.from, out.to}] = key
	if len(r.recent) < 512 {
		r.recent = append(r.recent, key)
	} else {
		r.recent[r.IntN(len(r.recent))] = key
	}
}

// remember records the flow in the oracle, if that needs it: for UDP and for clients with affinity.
func (r *packetGenerator) remember(in, out seen) oracle.State {
	if in.protocol == tcp && in.to.Port() != portSticky {
		return r.oracle
	}
	return r.oracle.After(r.flowOf(in), out.to.Addr())
}

// checkAnswer checks the forwarding of a node's packet.
func (r *packetGenerator) checkAnswer(in, out seen) {
	key, known := r.owners[nodeFlow{in.protocol, in.to, in.from}]
	require.True(r, known, "%+v goes to %+v, and nobody has asked", in, out)
	require.Equal(r, key.from, out.to)
	require.Equal(r, key.to, out.from)
	if in.protocol != tcp {
		return
	}
	p := r.flows[key]
	p.received = in.seq + uint32(len(in.payload)) + uint32(in.flags&syn>>1) + uint32(in.flags&fin)
	r.flows[key] = p
	if in.flags&(fin|rst) != 0 {
		r.close(key)
	}
}
