package ebpf

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addVeth adds an interface as for a pod, with an index if that is not 0.
func (b *testGateway) addVeth(name string, index int) *netlink.LinkAttrs {
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: name + "-peer"}
	pair.Name, pair.Index = name, index
	require.NoError(b, netlink.LinkAdd(pair))
	l, err := netlink.LinkByName(name)
	require.NoError(b, err)
	require.NoError(b, netlink.LinkSetUp(l))
	return l.Attrs()
}

func (b *testGateway) remove(name string) {
	l, err := netlink.LinkByName(name)
	require.NoError(b, err)
	require.NoError(b, netlink.LinkDel(l))
}

// addSharedBlock adds a clsact with a shared block. The kernel adds no filter to that through the interface.
func (b *testGateway) addSharedBlock(at *netlink.LinkAttrs) {
	block := uint32(7)
	place := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: at.Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0), IngressBlock: &block}}
	require.NoError(b, netlink.QdiscAdd(place))
}

// startOnClsactWithoutXDP starts the backend on clsact, without XDP.
func (b *testGateway) startOnClsactWithoutXDP() {
	options := b.options()
	options[optionAttach], options[optionXDP] = attachClsact, xdpOff
	b.start(options)
}

func TestAnInterfaceThatRefusesTheProgramDoesNotAffectOthers(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.addSharedBlock(b.front)
		b.startOnClsactWithoutXDP()
		require.Equal(b, []string{b.ownName()}, b.filterNames(b.back))
		require.ErrorContains(b, b.backend.poll(false), "interface front: attach: add filter")
		require.NoError(b, b.backend.poll(false), "it is reported once")

		require.NoError(b, netlink.QdiscDel(qdiscOf(b.front, "clsact")))
		require.NoError(b, b.backend.poll(false))
		require.Equal(b, []string{b.ownName()}, b.filterNames(b.front), "each poll tries again")

		require.NoError(b, netlink.QdiscDel(qdiscOf(b.front, "clsact")))
		b.addSharedBlock(b.front)
		require.ErrorContains(b, b.backend.poll(false), "interface front: add filter", "another reason is reported, too")
		require.NoError(b, b.backend.poll(false))
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Equal(b, []string{"clsact"}, b.qdiscs(b.front), "the foreign qdisc is kept")
	})
}

func TestConfigureFailsIfNoInterfaceTakesTheProgram(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.addSharedBlock(b.front)
		b.addSharedBlock(b.back)
		b.backend = &Backend{}
		err := b.configure(map[string]string{optionAttach: attachClsact, optionXDP: xdpOff})
		require.ErrorContains(b, err, "interface front: attach: add filter")
		require.ErrorContains(b, err, "interface back: attach: add filter")
	})
}

func TestConfigureFailsIfNativeXDPIsNotPossible(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.NoError(b, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "dull"}}))
		b.backend = &Backend{}
		err := b.configure(map[string]string{optionXDP: xdpNative})
		require.ErrorContains(b, err, "interface dull: attach: XDP (backend option xdp=native)")
	})
}

// table is an empty u32 table, as 'tc filter add ... u32 divisor 1' adds it: it uses a priority, and no list of filters shows it.
func table(at *netlink.LinkAttrs, priority uint16) netlink.Filter {
	return &netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: at.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: uint32(priority) << 20, Priority: priority, Protocol: unix.ETH_P_ALL}, Divisor: 1}
}

func TestAUsedPriorityThatIsNotListedIsSkipped(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.NoError(b, netlink.QdiscAdd(qdiscOf(b.front, "clsact")))
		for _, priority := range []uint16{1, 2} {
			require.NoError(b, netlink.FilterAdd(table(b.front, priority)))
		}
		require.Empty(b, b.filters(b.front))
		b.startOnClsactWithoutXDP()
		own := b.backend.kernel.filter(b.front.Index).find(b.filters(b.front))
		require.NotNil(b, own)
		require.EqualValues(b, 3, own.Priority)
	})
}

func TestAQdiscWithAnEmptyTableIsKept(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.restart(attachClsact)
		require.NoError(b, netlink.FilterAdd(table(b.front, 2)))
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Equal(b, []string{"clsact"}, b.qdiscs(b.front))
		require.Empty(b, b.qdiscs(b.back))
	})
}

func TestANewInterfaceWithTheIndexOfARemovedOneIsAttachedAndReported(t *testing.T) {
	for _, attach := range []string{attachAuto, attachClsact} {
		for _, xdp := range []string{xdpOff, xdpNative} {
			onGateway(t, func(b *testGateway) {
				require.NoError(b, b.backend.Close(b.Context(), true))
				options := b.options()
				options[optionAttach], options[optionXDP] = attach, xdp
				b.start(options)
				expected := b.programs()
				before := b.front.Index
				b.remove("front")
				b.front = b.addVeth("front", before)
				require.ErrorContains(b, b.backend.poll(false), "interface front: ")
				require.Equal(b, expected, b.programs(), "attach=%s xdp=%s", attach, xdp)
				require.Equal(b, b.loadedProgram(), b.programAt(b.front))
				require.NoError(b, b.backend.poll(false))
				require.NoError(b, b.backend.Close(b.Context(), true))
				require.Zero(b, b.programs())
			})
		}
	}
}
