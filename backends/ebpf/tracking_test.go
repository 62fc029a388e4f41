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

// addDNAT adds an nftables rule that sends packets for TCP port portPlain to the node, as another dataplane does.
func (b *testGateway) addDNAT() {
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

// openByDNAT opens a connection through the rule of addDNAT. There must be no frontends yet.
func (x *exchange) openByDNAT() {
	send := x.sender(x.front)
	family := netlink.InetFamily(unix.AF_INET6)
	if x.v4 {
		family = unix.AF_INET
	}
	require.NoError(x, send(x.firstFrame(portPlain).bytes()))
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

// openAllByDNAT opens a connection of each family through the rule.
func (b *testGateway) openAllByDNAT() (all []*exchange) {
	for _, v4 := range []bool{true, false} {
		x := b.exchange(v4, tcp)
		x.openByDNAT()
		all = append(all, x)
	}
	return all
}

// The order of these tests matters: the first two need a kernel that does not track connections yet.

func TestConnectionTrackingStaysLoadedUntilThePurge(t *testing.T) {
	if isTracking("/") {
		t.Skip("connection tracking is in the kernel already, and may be in use")
	}
	unload := func() error { return unix.DeleteModule(trackingModule, unix.O_NONBLOCK) }
	onGateway(t, func(b *testGateway) {
		if out, err := exec.Command("modprobe", trackingModule).CombinedOutput(); err != nil {
			b.Logf("connection tracking is no module here: %v %s", err, out)
			return
		}
		require.NoError(b, unload())
		require.NoError(b, exec.Command("modprobe", trackingModule).Run())
		require.NoError(b, b.backend.poll(false))
		require.True(b, b.backend.kernel.tracking.usable())
		err := unload()
		require.True(b, errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EWOULDBLOCK), "%v", err)
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.eventually(func() bool { return unload() == nil }, "the kernel frees programs some time after the last reference")
		b.start(b.options())
		require.False(b, b.backend.kernel.tracking.present)
		b.serveFixtures()
		b.exchange(true, tcp).open(portPlain)
	})
}

func TestConnectionsThatNftablesBeganAreLeftToTheHostOnceConnectionTrackingIsLoaded(t *testing.T) {
	if isTracking("/") {
		t.Skip("connection tracking is in the kernel already")
	}
	onGateway(t, func(b *testGateway) {
		require.False(b, b.backend.kernel.tracking.present)
		b.addDNAT()
		require.True(b, isTracking("/"))
		connections := b.openAllByDNAT()
		b.serveFixtures()
		for _, x := range connections {
			x.mustRefuse(x.nextFrame(portPlain, ack)) // by programs that do not call connection tracking
		}
		require.NoError(b, b.backend.poll(false))
		for _, x := range connections {
			x.mustLeaveToHost(x.nextFrame(portPlain, ack))
		}
	})
}

func TestConnectionsThatNftablesBeganAreLeftToTheHost(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.addDNAT() // which loads the module of connection tracking
		b.start(b.options())
		require.True(b, b.backend.kernel.tracking.usable(), "%v", b.backend.faultAtStart())
		connections := b.openAllByDNAT()
		b.serveFixtures()
		for _, x := range connections {
			x.mustLeaveToHost(x.nextFrame(portPlain, ack))
			stranger := b.exchange(x.v4, tcp)
			stranger.mustRefuse(stranger.nextFrame(portPlain, ack))
		}
	})
}

func TestAModuleWhoseTypesCannotBeReadIsReported(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.addDNAT()
		b.restrict()
		b.start(b.options())
		connections := b.openAllByDNAT()
		b.serveFixtures()
		kernel, err := btf.LoadKernelSpec()
		require.NoError(b, err)
		if checkFunctions(kernel) == nil {
			require.NoError(b, b.backend.faultAtStart())
			for _, x := range connections {
				x.mustLeaveToHost(x.nextFrame(portPlain, ack))
			}
			return
		}
		require.ErrorContains(b, b.backend.faultAtStart(), "CAP_SYS_ADMIN")
		for _, x := range connections {
			x.mustRefuse(x.nextFrame(portPlain, ack))
		}
	})
}

// addTableOfNftables adds a table with the name of the nftables dataplane's.
func (b *testGateway) addTableOfNftables() {
	c, err := nft.New()
	require.NoError(b, err)
	c.AddTable(&nft.Table{Name: nftablesTable, Family: nft.TableFamilyINet})
	require.NoError(b, c.Flush())
}

func TestAKernelThatCannotBeAskedAboutConnectionsIsAFaultOnlyIfConnectionsEnd(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		cannot := tracking{present: true, err: errors.New("kernel function bpf_ct_release (Linux 5.19): not found")}
		b.backend.kernel.tracking = cannot
		b.addDNAT()
		require.NoError(b, b.backend.faultAtStart(), "no dataplane has begun a connection")
		connections := b.openAllByDNAT()
		require.NoError(b, b.backend.faultAtStart(), "the connections are those of another program, to no frontend")
		b.serveFixtures()
		require.ErrorContains(b, b.backend.faultAtStart(), "TCP connections that another dataplane of this host began will end: kernel function bpf_ct_release")
		require.NotEmpty(b, connections)
		b.backend.kernel.tracking = tracking{present: true}
		require.NoError(b, b.backend.faultAtStart(), "the programs leave them to the host")
	})
	onGateway(t, func(b *testGateway) {
		b.backend.kernel.tracking = tracking{present: true, err: errors.New("no types")}
		require.NoError(b, b.backend.faultAtStart())
		b.addTableOfNftables()
		require.ErrorContains(b, b.backend.faultAtStart(), "no types", "the nftables dataplane may begin connections until it is purged")
	})
}

func TestConnectionTrackingThatComesLaterIsAFaultOnlyBesideTheNftablesDataplane(t *testing.T) {
	for _, beside := range []bool{false, true} {
		onGateway(t, func(b *testGateway) {
			kernel, err := btf.LoadKernelSpec()
			require.NoError(b, err)
			come := b.hideTracking() // and with it the types of the module
			if beside {
				b.addTableOfNftables()
			}
			come()
			err = b.backend.poll(false)
			if !beside || checkFunctions(kernel) == nil {
				require.NoError(b, err)
				return
			}
			require.ErrorContains(b, err, "CONFIG_DEBUG_INFO_BTF_MODULES")
			require.NoError(b, b.backend.poll(false), "it is reported once")
		})
	}
}
