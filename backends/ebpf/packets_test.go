package ebpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/core/model"
)

// Ports of the VIP, by what is served there.
const (
	portPlain, portOther, portEmpty, portRanged, portSticky, portTransparent, portDirect = 80, 81, 82, 83, 84, 85, 86

	portOfNodes = 30080
)

// exchange is a client with a flow to a VIP, of one family and protocol.
type exchange struct {
	*testGateway
	v4       bool
	protocol uint8
	client   netip.AddrPort
	received uint32 // the sequence number after what the client has received
}

// firstNumber is the number of an endpoint's SYN. Later numbers overflow.
const firstNumber = 1<<32 - 4

var lastClientPort uint16

func (b *testGateway) exchange(v4 bool, protocol uint8) *exchange {
	lastClientPort++
	return &exchange{testGateway: b, v4: v4, protocol: protocol, client: netip.AddrPortFrom(theClient[v4], 40000+lastClientPort)}
}

func (x *exchange) vip(port uint16) netip.AddrPort { return netip.AddrPortFrom(theVIP[x.v4], port) }

// firstFrame is the client's first frame of a flow.
func (x *exchange) firstFrame(port uint16) frame {
	return frame{from: x.client, to: x.vip(port), toMAC: x.front.HardwareAddr, protocol: x.protocol, flags: syn, payload: []byte("question")}
}

// nextFrame is a later frame of the client's flow. It acknowledges what the client has received.
func (x *exchange) nextFrame(port uint16, flags uint8) frame {
	f := x.firstFrame(port)
	f.flags, f.acked = flags, x.received
	return f
}

// reply is an endpoint's answer to a frame.
func (x *exchange) reply(to seen, flags uint8) frame {
	f := frame{from: to.to, to: to.from, toMAC: x.back.HardwareAddr, protocol: x.protocol, flags: flags, seq: x.received, payload: []byte("answer")}
	if flags&syn != 0 {
		f.seq = firstNumber
	}
	return f
}

func (x *exchange) fromClient(f frame) outcome { return x.receive(x.front, f.bytes()) }
func (x *exchange) fromNode(f frame) outcome   { return x.receive(x.back, f.bytes()) }

// mustSend requires that the frame is forwarded as by a router: with a lower TTL, complete and without errors.
func (x *exchange) mustSend(f frame, o outcome) seen {
	return x.mustSendWith(dissect(f.bytes()).ttl-1, f, o)
}

func (x *exchange) mustSendWith(ttl uint8, f frame, o outcome) seen {
	require.Equal(x, sent, o.verdict)
	s := dissect(o.frame)
	require.Empty(x, s.errors, "%x became %x", f.bytes(), o.frame)
	before := dissect(f.bytes())
	require.Equal(x, ttl, s.ttl, "hops")
	require.Equal(x, before.payload, s.payload)
	require.Equal(x, before.flags, s.flags)
	return s
}

// mustReachNode requires that the frame is sent to a node, with the gateway as its source.
func (x *exchange) mustReachNode(f frame) seen {
	s := x.mustSend(f, x.fromClient(f))
	require.Contains(x, []netip.Addr{theNode[x.v4], otherNode[x.v4]}, s.to.Addr())
	require.Equal(x, theGateway[x.v4], s.from.Addr())
	require.True(x, s.from.Port() >= firstPort && s.from.Port() <= lastPort, "source port %d", s.from.Port())
	require.EqualValues(x, portOfNodes, s.to.Port())
	return s
}

// mustReachClient requires that the node's frame is sent to the client, with the VIP as its source.
func (x *exchange) mustReachClient(f frame, port uint16) seen {
	s := x.mustSend(f, x.fromNode(f))
	require.Equal(x, x.client, s.to)
	require.Equal(x, x.vip(port), s.from)
	x.received = f.end()
	return s
}

// open opens a flow: a frame of the client, an answer, and another frame of the client.
func (x *exchange) open(port uint16) seen {
	s := x.mustReachNode(x.firstFrame(port))
	x.mustReachClient(x.reply(s, syn|ack), port)
	require.Equal(x, s.from, x.mustReachNode(x.nextFrame(port, ack)).from, "a flow keeps its port")
	return s
}

// mustLeaveToHost requires that the frame is left to the host unchanged.
func (x *exchange) mustLeaveToHost(f frame) {
	o := x.fromClient(f)
	require.Equal(x, left, o.verdict)
	require.True(x, bytes.Equal(f.bytes(), o.frame), "%x became %x", f.bytes(), o.frame)
}

// mustDrop requires that the frame is dropped, and counted for the reason.
func (x *exchange) mustDrop(f frame, reason string) { x.mustDropAt(x.front, f, reason) }

func (x *exchange) mustDropAt(at *netlink.LinkAttrs, f frame, reason string) {
	before := x.drops()[reason]
	o := x.receive(at, f.bytes())
	require.Equal(x, dropping, o.verdict, "%x", f.bytes())
	require.Equal(x, before+1, x.drops()[reason], "counted as %s", reason)
}

// mustAnswer requires an answer by the gateway, with the destination of the frame as its source.
func (x *exchange) mustAnswer(f frame, reason string) seen {
	before := x.drops()[reason]
	o := x.receive(x.front, f.bytes())
	require.Equal(x, answered, o.verdict, "%x", f.bytes())
	require.Equal(x, before+1, x.drops()[reason], "counted as %s", reason)
	s := dissect(o.frame)
	require.Empty(x, s.errors, "%x was answered %x", f.bytes(), o.frame)
	require.Equal(x, f.from.Addr(), s.to.Addr())
	require.Equal(x, f.to.Addr(), s.from.Addr())
	return s
}

// mustRefuse requires a reset, or an ICMP error.
func (x *exchange) mustRefuse(f frame) {
	s := x.mustAnswer(f, "refused")
	if x.protocol == tcp {
		require.EqualValues(x, tcp, s.protocol)
		require.NotZero(x, s.flags&rst)
		if f.flags&ack == 0 {
			require.Equal(x, f.seq+uint32(len(f.payload))+uint32(f.flags&syn>>1), s.acked, "acknowledges all that the client has sent")
		} else {
			require.Equal(x, f.acked, s.seq)
		}
		return
	}
	x.mustReport(s, unreachableOf(x.v4), f)
}

func unreachableOf(v4 bool) [2]uint8 {
	if v4 {
		return [2]uint8{3, 3}
	}
	return [2]uint8{1, 4}
}

// mustReport requires an ICMP error that quotes the frame.
func (x *exchange) mustReport(s seen, kind [2]uint8, f frame) {
	require.Equal(x, map[bool]uint8{true: icmp4, false: icmp6}[x.v4], s.protocol)
	require.Equal(x, kind, [2]uint8{s.icmpType, s.icmpCode})
	packet := f.bytes()[14:]
	n := min(len(packet), len(s.payload))
	require.GreaterOrEqual(x, n, len(f.options)+28, "length of the quoted packet")
	require.Equal(x, packet[:n], s.payload[:n])
}

func poolOf(name string, v4 bool) model.PoolID {
	return model.PoolID(fmt.Sprintf("%s.%t", name, v4))
}

// fixtures returns the pools and frontends of the fixtures.
func fixtures() ([]model.Pool, []model.Frontend) {
	var pools []model.Pool
	var frontends []model.Frontend
	for _, v4 := range []bool{true, false} {
		id := func(name string) model.PoolID { return poolOf(name, v4) }
		one := model.Endpoint{ID: "n1", Address: theNode[v4], Weight: 1}
		two := model.Endpoint{ID: "n2", Address: otherNode[v4], Weight: 1}
		pools = append(pools, model.Pool{ID: id("both"), Tenant: "a", Endpoints: []model.Endpoint{one, two}}, model.Pool{ID: id("empty"), Tenant: "a"})
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			add := func(port uint16, pool string, change func(*model.Frontend)) {
				f := model.Frontend{FrontendKey: model.FrontendKey{VIP: theVIP[v4], Protocol: protocol, Port: port}, Owner: model.ObjectName{Namespace: "tenant-a", Name: "web"}, Tenant: "a",
					Pool: id(pool), TargetPort: portOfNodes}
				if change != nil {
					change(&f)
				}
				frontends = append(frontends, f)
			}
			add(portPlain, "both", nil)
			add(portEmpty, "empty", nil)
			add(portRanged, "both", func(f *model.Frontend) {
				f.Restricted, f.SourceRanges = true, []netip.Prefix{netip.PrefixFrom(theClient[v4], theClient[v4].BitLen()-4).Masked()}
			})
			add(portSticky, "both", func(f *model.Frontend) { f.AffinityTimeout = time.Minute })
			add(portTransparent, "both", func(f *model.Frontend) { f.Forwarding = model.Transparent })
			add(portDirect, "both", func(f *model.Frontend) { f.Forwarding = model.Direct })
		}
	}
	return pools, frontends
}

// fixture is one test case of what the programs do with packets.
type fixture struct {
	name string
	only uint8 // the protocol, if the fixture is for one of them only
	run  func(x *exchange)
}

func TestPacketsBecomeWhatTheyShould(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		ran := 0
		for _, b.withoutXDP = range []bool{false, true} {
			for _, f := range slices.Concat(flowFixtures, proofFixtures, answerFixtures, errorFixtures, malformedFixtures, sweepFixtures, limitFixtures) {
				for _, v4 := range []bool{true, false} {
					for _, protocol := range []uint8{tcp, udp} {
						if f.only == 0 || f.only == protocol {
							b.fixture(f, v4, protocol)
							ran++
						}
					}
				}
			}
		}
		t.Logf("%d fixtures; XDP saw %d frames and served %d", ran, b.xdpRan, b.xdpHandled)
		require.GreaterOrEqual(t, ran, 150)
		require.Greater(t, b.xdpHandled, b.xdpRan/3)
	})
}

// fixture runs one fixture. It is no subtest, which would not run on the thread of the gateway's namespace.
func (b *testGateway) fixture(f fixture, v4 bool, protocol uint8) {
	failed := b.runUntilFailure(func() {
		pools, frontends := fixtures()
		b.apply(pools, frontends...)
		b.refillBudget()
		f.run(b.exchange(v4, protocol))
	})
	if failed {
		b.Logf("that was: %s (IPv4 %t, protocol %d, without XDP %t)", f.name, v4, protocol, b.withoutXDP)
	}
}

// refillBudget resets the limit of answers by the gateway.
func (b *testGateway) refillBudget() {
	n := make([]budget, 0)
	require.NoError(b, b.backend.kernel.objects.Budgets.Lookup(uint32(0), &n))
	require.NoError(b, b.backend.kernel.objects.Budgets.Put(uint32(0), make([]budget, len(n))))
}

type budget struct{ Spent uint64 }
