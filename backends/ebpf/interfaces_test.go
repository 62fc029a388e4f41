package ebpf

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addVeth adds an interface as that of a pod, or with another one's number.
func (b *bench) addVeth(name string, index int) *netlink.LinkAttrs {
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: name + "-peer"}
	pair.Name, pair.Index = name, index
	require.NoError(b, netlink.LinkAdd(pair))
	l, err := netlink.LinkByName(name)
	require.NoError(b, err)
	require.NoError(b, netlink.LinkSetUp(l))
	return l.Attrs()
}

func (b *bench) remove(name string) {
	l, err := netlink.LinkByName(name)
	require.NoError(b, err)
	require.NoError(b, netlink.LinkDel(l))
}

// refuseFilters makes a place for filters whose block others share. The kernel adds no filter to that by way of the interface.
func (b *bench) refuseFilters(at *netlink.LinkAttrs) {
	block := uint32(7)
	place := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: at.Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0), IngressBlock: &block}}
	require.NoError(b, netlink.QdiscAdd(place))
}

// startTolerant starts the backend on clsact, without XDP.
func (b *bench) startTolerant() {
	options := b.options()
	options[optionAttach], options[optionXDP] = attachClsact, xdpOff
	b.start(options)
}

func TestAnInterfaceThatTakesNoFilterKeepsNoOtherFromBeingServed(t *testing.T) {
	onBench(t, func(b *bench) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.refuseFilters(b.front)
		b.startTolerant()
		require.Equal(b, []string{b.ownName()}, b.filterNames(b.back))
		require.ErrorContains(b, b.backend.look(false), "interface front: attach: add filter")
		require.NoError(b, b.backend.look(false), "it is said once")

		require.NoError(b, netlink.QdiscDel(entranceOf(b.front, "clsact")))
		require.NoError(b, b.backend.look(false))
		require.Equal(b, []string{b.ownName()}, b.filterNames(b.front), "it is tried again at each look")

		require.NoError(b, netlink.QdiscDel(entranceOf(b.front, "clsact")))
		b.refuseFilters(b.front)
		require.ErrorContains(b, b.backend.look(false), "interface front: add filter", "another reason is said, too")
		require.NoError(b, b.backend.look(false))
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Equal(b, []string{"clsact"}, b.entrances(b.front), "somebody else's")
	})
}

func TestAStartFailsWhereNoInterfaceTakesTheProgram(t *testing.T) {
	onBench(t, func(b *bench) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.refuseFilters(b.front)
		b.refuseFilters(b.back)
		b.backend = &Backend{}
		err := b.configure(map[string]string{optionAttach: attachClsact, optionXDP: xdpOff})
		require.ErrorContains(b, err, "interface front: attach: add filter")
		require.ErrorContains(b, err, "interface back: attach: add filter")
	})
}

func TestAStartFailsWhereXDPDoesNotRunAsAsked(t *testing.T) {
	onBench(t, func(b *bench) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.NoError(b, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "dull"}}))
		b.backend = &Backend{}
		err := b.configure(map[string]string{optionXDP: xdpNative})
		require.ErrorContains(b, err, "interface dull: attach: XDP (backend option xdp=native)")
	})
}

// table is what tc filter add ... u32 divisor 1 makes: it has a priority, and no list of filters shows it.
func table(at *netlink.LinkAttrs, priority uint16) netlink.Filter {
	return &netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: at.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: uint32(priority) << 20, Priority: priority, Protocol: unix.ETH_P_ALL}, Divisor: 1}
}

func TestAPriorityThatIsTakenUnseenIsPassedOver(t *testing.T) {
	onBench(t, func(b *bench) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.NoError(b, netlink.QdiscAdd(entranceOf(b.front, "clsact")))
		for _, priority := range []uint16{1, 2} {
			require.NoError(b, netlink.FilterAdd(table(b.front, priority)))
		}
		require.Empty(b, b.filters(b.front))
		b.startTolerant()
		own := b.backend.kernel.filter(b.front.Index).own(b.filters(b.front))
		require.NotNil(b, own)
		require.EqualValues(b, 3, own.Priority)
	})
}

func TestATableWithoutFiltersKeepsThePlaceThatItIsIn(t *testing.T) {
	onBench(t, func(b *bench) {
		b.restart(attachClsact)
		require.NoError(b, netlink.FilterAdd(table(b.front, 2)))
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Equal(b, []string{"clsact"}, b.entrances(b.front))
		require.Empty(b, b.entrances(b.back))
	})
}

func TestAnInterfaceWithTheNumberOfAnotherIsServedAndSaid(t *testing.T) {
	for _, attach := range []string{attachAuto, attachClsact} {
		for _, xdp := range []string{xdpOff, xdpNative} {
			onBench(t, func(b *bench) {
				require.NoError(b, b.backend.Close(b.Context(), true))
				options := b.options()
				options[optionAttach], options[optionXDP] = attach, xdp
				b.start(options)
				expected := b.programs()
				before := b.front.Index
				b.remove("front")
				b.front = b.addVeth("front", before)
				require.ErrorContains(b, b.backend.look(false), "interface front: ")
				require.Equal(b, expected, b.programs(), "attach=%s xdp=%s", attach, xdp)
				require.Equal(b, b.loaded(), b.runsAt(b.front))
				require.NoError(b, b.backend.look(false))
				require.NoError(b, b.backend.Close(b.Context(), true))
				require.Zero(b, b.programs())
			})
		}
	}
}
