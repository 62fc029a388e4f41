package ebpf

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/cilium/ebpf/btf"
	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// translate has nftables send what comes for TCP port portPlain to the node, as another dataplane does.
func (b *bench) translate() {
	c, err := nft.New()
	require.NoError(b, err)
	for _, v4 := range []bool{true, false} {
		family := nft.TableFamilyIPv6
		if v4 {
			family = nft.TableFamilyIPv4
		}
		table := c.AddTable(&nft.Table{Name: "others", Family: family})
		chain := c.AddChain(&nft.Chain{Table: table, Name: "nat", Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPrerouting, Priority: nft.ChainPriorityNATDest})
		c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(portPlain)},
			&expr.Immediate{Register: 1, Data: theNode[v4].AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(portOfNodes)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: 1, RegProtoMin: 2},
		}})
	}
	require.NoError(b, c.Flush())
}

// beginElsewhere has a client open a connection by nftables' rule. No frontend may be there yet.
func (x *exchange) beginElsewhere() {
	send := x.sender(x.front)
	family := netlink.InetFamily(unix.AF_INET6)
	if x.v4 {
		family = unix.AF_INET
	}
	require.NoError(x, send(x.ask(portPlain).bytes()))
	x.eventually(func() bool {
		found, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		require.NoError(x, err)
		for _, f := range found {
			if f.Forward.SrcIP.Equal(x.client.Addr().AsSlice()) && f.Forward.SrcPort == x.client.Port() && f.Reverse.SrcIP.Equal(theNode[x.v4].AsSlice()) {
				return true
			}
		}
		return false
	}, "the kernel rewrites the connection")
}

// beginAllElsewhere opens a connection of each family.
func (b *bench) beginAllElsewhere() (all []*exchange) {
	for _, v4 := range []bool{true, false} {
		x := b.exchange(v4, tcp)
		x.beginElsewhere()
		all = append(all, x)
	}
	return all
}

// The tests stand in this order because the first two need a kernel that does not track connections yet.

func TestAConnectionTrackingThatIsAskedStaysLoadedUntilThePurge(t *testing.T) {
	if trackingIsThere("/") {
		t.Skip("connection tracking is in the kernel already, and may be in use")
	}
	unload := func() error { return unix.DeleteModule(trackingModule, unix.O_NONBLOCK) }
	onBench(t, func(b *bench) {
		if out, err := exec.Command("modprobe", trackingModule).CombinedOutput(); err != nil {
			b.Logf("connection tracking is no module here: %v %s", err, out)
			return
		}
		require.NoError(b, unload())
		require.NoError(b, exec.Command("modprobe", trackingModule).Run())
		require.NoError(b, b.backend.look(false))
		require.True(b, b.backend.kernel.tracking.asked())
		err := unload()
		require.True(b, errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EWOULDBLOCK), "%v", err)
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.eventually(func() bool { return unload() == nil }, "the kernel frees programs some time after the last reference")
		b.start(b.options())
		require.False(b, b.backend.kernel.tracking.seen)
		b.serveFixtures()
		b.exchange(true, tcp).begin(portPlain)
	})
}

func TestConnectionsThatNftablesBeganAreLeftToTheHostOnceConnectionTrackingHasCome(t *testing.T) {
	if trackingIsThere("/") {
		t.Skip("connection tracking is in the kernel already")
	}
	onBench(t, func(b *bench) {
		require.False(b, b.backend.kernel.tracking.seen)
		b.translate()
		require.True(b, trackingIsThere("/"))
		connections := b.beginAllElsewhere()
		b.serveFixtures()
		for _, x := range connections {
			x.mustRefuse(x.goOn(portPlain, ack)) // by programs from before
		}
		require.NoError(b, b.backend.look(false))
		for _, x := range connections {
			x.mustLeave(x.goOn(portPlain, ack))
		}
	})
}

func TestConnectionsThatNftablesBeganAreLeftToTheHost(t *testing.T) {
	onBench(t, func(b *bench) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.translate() // which loads connection tracking where it is a module
		b.start(b.options())
		require.True(b, b.backend.kernel.tracking.asked(), "%v", b.backend.trackingFault())
		connections := b.beginAllElsewhere()
		b.serveFixtures()
		for _, x := range connections {
			x.mustLeave(x.goOn(portPlain, ack))
			stranger := b.exchange(x.v4, tcp)
			stranger.mustRefuse(stranger.goOn(portPlain, ack))
		}
	})
}

func TestAModuleWhoseTypesCannotBeReadIsSaid(t *testing.T) {
	onBench(t, func(b *bench) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.translate()
		b.restrict()
		b.start(b.options())
		connections := b.beginAllElsewhere()
		b.serveFixtures()
		kernel, err := btf.LoadKernelSpec()
		require.NoError(b, err)
		if hasTracking(kernel) == nil {
			require.NoError(b, b.backend.trackingFault())
			for _, x := range connections {
				x.mustLeave(x.goOn(portPlain, ack))
			}
			return
		}
		require.ErrorContains(b, b.backend.trackingFault(), "CAP_SYS_ADMIN")
		for _, x := range connections {
			x.mustRefuse(x.goOn(portPlain, ack))
		}
	})
}
