package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// The MAC addresses on the gateway's segments: clients are on the segment front, and nodes on back.
var (
	clientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	nodeMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

func addresses(v4, v6 string) map[bool]netip.Addr {
	return map[bool]netip.Addr{true: netip.MustParseAddr(v4), false: netip.MustParseAddr(v6)}
}

var (
	theClient  = addresses("192.0.2.100", "2001:db8:c::100")
	theGateway = addresses("198.51.100.1", "2001:db8:1::1")
	theNode    = addresses("198.51.100.10", "2001:db8:1::a")
	otherNode  = addresses("198.51.100.11", "2001:db8:1::b")
	// otherTenantNode is a node of another tenant.
	otherTenantNode = addresses("198.51.100.12", "2001:db8:1::c")
	theRouter       = addresses("198.51.100.254", "2001:db8:1::fe")
	theVIP          = addresses("203.0.113.1", "2001:db8:f::1")
	notVIP          = addresses("203.0.113.99", "2001:db8:f::99")
)

// testGateway is a gateway in a network namespace. Tests run its programs.
type testGateway struct {
	*testing.T
	backend            *Backend
	front, back        *netlink.LinkAttrs
	other              *netlab.Namespace // the other ends of the links, a and b
	withoutXDP         bool
	xdpRan, xdpHandled int
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("programs are loaded by root only")
	}
}

// onGateway runs f in the network namespace of a gateway with two segments.
func onGateway(t *testing.T, f func(b *testGateway)) {
	needRoot(t)
	lab := netlab.New("klebpf")
	t.Cleanup(func() { require.NoError(t, lab.Close()) })
	gateway, err := lab.Namespace("gw", "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv6/conf/default/accept_dad=0")
	require.NoError(t, err)
	other, err := lab.Namespace("other")
	require.NoError(t, err)
	require.NoError(t, gateway.MountBPF())
	require.NoError(t, lab.Link(netlab.Interface{Namespace: gateway, Name: "front", Addresses: []string{"192.0.2.1/24", "2001:db8:c::1/64"}}, netlab.Interface{Namespace: other, Name: "a"}))
	require.NoError(t, lab.Link(netlab.Interface{Namespace: gateway, Name: "back", Addresses: []string{"198.51.100.1/24", "2001:db8:1::1/64"}}, netlab.Interface{Namespace: other, Name: "b"}))
	for _, end := range []string{"a", "b"} {
		require.NoError(t, other.AcceptXDPFrames(end))
	}
	require.NoError(t, gateway.Do(func() error {
		b := &testGateway{T: t, other: other, backend: &Backend{editSpec: observed.edit()}}
		err := b.prepare()
		if err == nil {
			b.runUntilFailure(func() { f(b) })
		}
		return errors.Join(err, b.backend.Close(t.Context(), false))
	}))
}

// testFailed is the panic of FailNow. The tests' code runs in another goroutine than the test, so runtime.Goexit does not help.
type testFailed struct{}

// FailNow ends the function that runUntilFailure runs.
func (b *testGateway) FailNow() {
	b.Fail()
	panic(testFailed{})
}

// runUntilFailure runs f, and returns whether it has called FailNow.
func (b *testGateway) runUntilFailure(f func()) (failed bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ours := r.(testFailed); !ours {
				panic(r)
			}
			failed = true
		}
	}()
	f()
	return false
}

func (b *testGateway) prepare() error {
	for name, into := range map[string]**netlink.LinkAttrs{"front": &b.front, "back": &b.back} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		*into = l.Attrs()
	}
	if err := b.prepareAddresses(); err != nil {
		return err
	}
	return b.configure(b.options())
}

func (b *testGateway) configure(options map[string]string) error {
	return b.backend.Configure(b.Context(), dataplane.Config{StateDir: "gw", Options: options})
}

// start starts another backend. The former one has to be closed.
func (b *testGateway) start(options map[string]string) {
	b.backend = &Backend{editSpec: observed.edit()}
	require.NoError(b, b.configure(options))
}

// options are the options of all tests. KUBELB_ATTACH sets another value of the option attach.
func (b *testGateway) options() map[string]string {
	options := map[string]string{optionXDP: xdpNative, optionFlows: "524288"}
	if way := os.Getenv("KUBELB_ATTACH"); way != "" {
		options[optionAttach] = way
	}
	return options
}

// sender returns a function that sends a frame into the interface, from the other end of its link.
func (b *testGateway) sender(at *netlink.LinkAttrs) func(frame []byte) error {
	socket := -1
	require.NoError(b, b.other.Do(func() error {
		l, err := netlink.LinkByName(map[*netlink.LinkAttrs]string{b.front: "a", b.back: "b"}[at])
		if err != nil {
			return err
		}
		if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(socket, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
	}))
	b.Cleanup(func() { _ = unix.Close(socket) })
	return func(frame []byte) error {
		_, err := unix.Write(socket, frame)
		return err
	}
}

// prepareAddresses adds the MAC addresses of all next hops, and the IPv6 address, which the kernel removes when an interface goes down.
func (b *testGateway) prepareAddresses() error {
	back, err := netlink.LinkByName("back")
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: theGateway[false].AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(back, address); err != nil {
		return err
	}
	for _, v4 := range []bool{true, false} {
		for _, n := range []struct {
			at   *netlink.LinkAttrs
			ip   netip.Addr
			hard net.HardwareAddr
		}{{b.front, theClient[v4], clientMAC}, {b.back, theNode[v4], nodeMAC}, {b.back, otherNode[v4], nodeMAC}, {b.back, otherTenantNode[v4], nodeMAC}, {b.back, theRouter[v4], nodeMAC}} {
			if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: n.at.Index, IP: n.ip.AsSlice(), HardwareAddr: n.hard, State: netlink.NUD_PERMANENT}); err != nil {
				return fmt.Errorf("neighbour %s: %w", n.ip, err)
			}
		}
	}
	return nil
}

// flowTables are the tables of flows.
func (b *testGateway) flowTables() []*ebpf.Map {
	return []*ebpf.Map{b.backend.kernel.objects.Flows, b.backend.kernel.objects.YoungFlows}
}

// apply applies the records to the backend.
func (b *testGateway) apply(pools []model.Pool, frontends ...model.Frontend) {
	held, err := b.backend.Applied(b.Context())
	require.NoError(b, err)
	result, err := b.backend.Apply(b.Context(), dataplane.Change{Base: held.Generation, Next: dataplane.Generation{Epoch: "test", Number: held.Generation.Number + 1},
		Delta: model.Difference(held.Digests, model.Snapshot{Pools: pools, Frontends: frontends})})
	require.NoError(b, err)
	require.Empty(b, result.Failed)
}

// eventually waits until f is true. It calls f on this thread, which is in the gateway's namespace.
func (b *testGateway) eventually(f func() bool, what string) {
	for begun := time.Now(); !f(); time.Sleep(10 * time.Millisecond) {
		require.Less(b, time.Since(begun), 20*time.Second, "%s", what)
	}
}

// serveFixtures applies the fixtures to the backend.
func (b *testGateway) serveFixtures() {
	pools, frontends := fixtures()
	b.apply(pools, frontends...)
}

// verdict tells what the programs did with a frame.
type verdict string

const (
	sent     verdict = "sent"     // forwarded
	answered verdict = "answered" // an answer to its sender
	dropping verdict = "dropped"
	left     verdict = "left to the host"
)

// outcome is the result of running the programs on a frame.
type outcome struct {
	verdict verdict
	frame   []byte
	byXDP   bool
}

// Results of programs (linux/bpf.h, linux/pkt_cls.h).
const (
	xdpDrop, xdpPass, xdpRedirect = 1, 2, 4
	tcNext, tcDrop, tcRedirect    = 0xffffffff, 2, 7
)

// skb is the beginning of struct __sk_buff.
type skb struct {
	_       [9]uint32
	Ingress uint32
	Index   uint32
}

// xdpMD is struct xdp_md.
type xdpMD struct{ Data, End, Meta, Ingress, Queue, Egress uint32 }

// receive runs the programs on a frame, as the kernel would when the frame arrives at an interface.
func (b *testGateway) receive(at *netlink.LinkAttrs, frame []byte) outcome {
	if !b.withoutXDP {
		if o := b.receiveByXDP(at, frame); o.verdict != left {
			return o
		}
	}
	out := make([]byte, len(frame)+256)
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: skb{Ingress: uint32(at.Index), Index: uint32(at.Index)}}
	result, err := b.backend.kernel.objects.LbTc.Run(options)
	require.NoError(b, err)
	switch result {
	case tcNext:
		return outcome{verdict: left, frame: options.DataOut}
	case tcDrop:
		return outcome{verdict: dropping}
	}
	require.EqualValues(b, tcRedirect, result)
	if bytes.Equal(options.DataOut[:6], frame[6:12]) {
		return outcome{verdict: answered, frame: options.DataOut}
	}
	return outcome{verdict: sent, frame: options.DataOut}
}

func (b *testGateway) receiveByXDP(at *netlink.LinkAttrs, frame []byte) outcome {
	out := make([]byte, len(frame)+256)
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: xdpMD{End: uint32(len(frame)), Ingress: uint32(at.Index)}}
	result, err := b.backend.kernel.xdp.LbXdp.Run(options)
	require.NoError(b, err)
	b.xdpRan++
	switch result {
	case xdpPass:
		require.True(b, bytes.Equal(frame, options.DataOut), "XDP leaves a frame to tcx that it has changed: %x became %x", frame, options.DataOut)
		return outcome{verdict: left}
	case xdpDrop:
		b.xdpHandled++
		return outcome{verdict: dropping, byXDP: true}
	}
	require.EqualValues(b, xdpRedirect, result)
	b.xdpHandled++
	s := dissect(options.DataOut)
	switch {
	case bytes.Equal(s.fromMAC, b.front.HardwareAddr):
		require.Equal(b, clientMAC, s.toMAC, "the destination on the clients' segment")
	case bytes.Equal(s.fromMAC, b.back.HardwareAddr):
		require.Equal(b, nodeMAC, s.toMAC, "the destination on the nodes' segment")
	default:
		require.Fail(b, "XDP sends from an unknown address", "%s", s.fromMAC)
	}
	return outcome{verdict: sent, frame: options.DataOut, byXDP: true}
}

// drops returns how many packets were dropped, or answered, by reason.
func (b *testGateway) drops() map[string]uint64 {
	drops, err := b.backend.kernel.drops()
	require.NoError(b, err)
	return drops
}
