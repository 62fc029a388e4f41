package hostflows

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/core/model"
)

// TestEachTrackedReadsTheSameAsTheLibrary creates random entries in the kernel, and reads them in both ways.
func TestEachTrackedReadsTheSameAsTheLibrary(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	for _, v4 := range []bool{true, false} {
		require.True(t, preflight.InNetworkNamespace(func() { compareFlows(t, v4) }))
	}
}

func compareFlows(t *testing.T, v4 bool) {
	r := rand.New(rand.NewPCG(1, 2))
	kind := netlink.InetFamily(unix.AF_INET6)
	size := 16
	if v4 {
		kind, size = unix.AF_INET, 4
	}
	address := func() net.IP {
		ip := make(net.IP, size)
		for i := range ip {
			ip[i] = byte(1 + r.IntN(200))
		}
		return ip
	}
	for range 500 {
		f := &netlink.ConntrackFlow{FamilyType: uint8(kind), TimeOut: 600, Mark: r.Uint32(),
			Forward: netlink.IPTuple{SrcIP: address(), DstIP: address(), SrcPort: uint16(1 + r.IntN(65535)), DstPort: uint16(1 + r.IntN(65535)), Protocol: unix.IPPROTO_UDP}}
		f.Reverse = netlink.IPTuple{SrcIP: f.Forward.DstIP, DstIP: f.Forward.SrcIP, SrcPort: f.Forward.DstPort, DstPort: f.Forward.SrcPort, Protocol: unix.IPPROTO_UDP}
		if r.IntN(2) == 0 {
			f.Forward.Protocol, f.Reverse.Protocol, f.ProtoInfo = unix.IPPROTO_TCP, unix.IPPROTO_TCP, &netlink.ProtoInfoTCP{State: nl.TCP_CONNTRACK_ESTABLISHED}
		}
		if err := netlink.ConntrackCreate(netlink.ConntrackTable, kind, f); err != nil {
			t.Error(err)
			return
		}
	}
	var got []Flow
	if err := EachTracked(v4, func(f *Flow) bool {
		if f.Expires > 600*time.Second || f.Expires < 500*time.Second {
			t.Errorf("an entry of 600 s expires after %s", f.Expires)
		}
		f.Expires = 0
		got = append(got, *f)
		return f.VIPPort%2 == 0
	}); err != nil {
		t.Error(err)
		return
	}
	if len(got) != 500 {
		t.Errorf("%d entries of 500", len(got))
	}
	left, err := netlink.ConntrackTableList(netlink.ConntrackTable, kind)
	if err != nil {
		t.Error(err)
		return
	}
	var want []Flow
	for _, l := range left {
		want = append(want, flowOf(l))
	}
	odd := slices.DeleteFunc(slices.Clone(got), func(f Flow) bool { return f.VIPPort%2 == 0 })
	order := func(a, b Flow) int { return a.Client.Compare(b.Client) }
	slices.SortFunc(want, order)
	slices.SortFunc(odd, order)
	if !slices.Equal(want, odd) {
		t.Errorf("the %d entries that are left differ from the %d that were to stay", len(want), len(odd))
	}
}

// flowOf converts an entry as the library reads it.
func flowOf(l *netlink.ConntrackFlow) Flow {
	plain := func(ip net.IP) netip.Addr {
		a, _ := netip.AddrFromSlice(ip)
		return a.Unmap()
	}
	f := Flow{Protocol: model.Protocol(l.Forward.Protocol), Client: plain(l.Forward.SrcIP), VIP: plain(l.Forward.DstIP), Endpoint: plain(l.Reverse.SrcIP), ReplyTo: plain(l.Reverse.DstIP),
		ClientPort: l.Forward.SrcPort, VIPPort: l.Forward.DstPort, EndpointPort: l.Reverse.SrcPort, ReplyPort: l.Reverse.DstPort, Mark: l.Mark}
	if info, is := l.ProtoInfo.(*netlink.ProtoInfoTCP); is {
		f.State = info.State
	}
	return f
}

func FuzzFlowsFromTheKernel(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 8, 0, 0, 0, 0, 1})
	f.Add([]byte{2, 0, 0, 0, 28, 0, 1, 128, 20, 0, 1, 128, 8, 0, 1, 0, 192, 0, 2, 1, 8, 0, 2, 0, 203, 0, 113, 1, 3})
	f.Fuzz(func(t *testing.T, entry []byte) {
		var read Flow
		if read.parse(entry) {
			require.True(t, read.VIP.IsValid())
		}
	})
}
