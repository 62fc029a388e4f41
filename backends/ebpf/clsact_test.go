package ebpf

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filters returns the filters at the interface's ingress, in their order.
func (b *testGateway) filters(at *netlink.LinkAttrs) []netlink.Filter {
	found, err := netlink.FilterList(&netlink.Dummy{LinkAttrs: *at}, netlink.HANDLE_MIN_INGRESS)
	require.NoError(b, err)
	return found
}

// filterNames returns the names of the BPF filters among them.
func (b *testGateway) filterNames(at *netlink.LinkAttrs) (names []string) {
	for _, f := range b.filters(at) {
		if own, ok := f.(*netlink.BpfFilter); ok {
			names = append(names, own.Name)
		}
	}
	return names
}

// qdiscs returns the kinds of the interface's queueing disciplines for filters.
func (b *testGateway) qdiscs(at *netlink.LinkAttrs) (kinds []string) {
	found, err := netlink.QdiscList(&netlink.Dummy{LinkAttrs: *at})
	require.NoError(b, err)
	for _, q := range found {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT {
			kinds = append(kinds, q.Type())
		}
	}
	return kinds
}

// restart closes the backend without a purge, and starts another one with the option attach.
func (b *testGateway) restart(attach string) {
	require.NoError(b, b.backend.Close(b.Context(), false))
	b.startWith(attach)
}

// startWith starts a backend with the option attach.
func (b *testGateway) startWith(attach string) {
	options := b.options()
	options[optionAttach] = attach
	b.start(options)
}

func (b *testGateway) ownName() string { return filepath.Base(b.backend.kernel.dir) }

// countingProgram is a foreign program that counts frames of a length, and leaves them.
func (b *testGateway) countingProgram(length int) (*ebpf.Program, func() uint64) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	require.NoError(b, err)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, -1),
		asm.LoadMem(asm.R3, asm.R1, 0, asm.Word), // the length
		asm.JNE.Imm(asm.R3, int32(length), "out"),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Imm(asm.R2, 0),
		asm.StoreMem(asm.RFP, -4, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	}})
	require.NoError(b, err)
	return program, func() (n uint64) {
		require.NoError(b, m.Lookup(uint32(0), &n))
		return n
	}
}

// addFilter adds a foreign filter.
func (b *testGateway) addFilter(at *netlink.LinkAttrs, program *ebpf.Program, priority, protocol uint16) {
	require.NoError(b, netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: at.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: priority, Protocol: protocol},
		Fd: program.FD(), Name: "somebody", DirectAction: true}))
}

func qdiscOf(at *netlink.LinkAttrs, kind string) netlink.Qdisc {
	return &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: at.Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}, QdiscType: kind}
}

func TestTheNextProcessReplacesAFilterWithoutAGap(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.restart(attachClsact)
		before := b.filters(b.front)[0].(*netlink.BpfFilter)
		absent, stop := b.watchForGaps()
		for range 5 {
			b.restart(attachClsact)
		}
		stop()
		require.Zero(b, absent())
		after := b.filters(b.front)
		require.Len(b, after, 2, "the balancing filter and the counting filter")
		require.Equal(b, before.Attrs(), after[0].Attrs())
		require.NotEqual(b, before.Id, after[0].(*netlink.BpfFilter).Id, "another program")
	})
}

// watchForGaps sends packets to a VIP's port without a frontend all the time. The program refuses them, or drops them beyond the limit. If no program
// runs, a later filter counts the packet.
func (b *testGateway) watchForGaps() (absent func() uint64, stop func()) {
	send, frame := b.sender(b.front), b.exchange(true, udp).firstFrame(portOther).bytes()
	program, count := b.countingProgram(len(frame))
	b.addFilter(b.front, program, 100, unix.ETH_P_ALL)
	b.serveFixtures()
	before := count()
	done, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-done:
				stopped <- nil
				return
			default:
			}
			if err := send(frame); err != nil {
				stopped <- err
				return
			}
			time.Sleep(50 * time.Microsecond)
		}
	}()
	return func() uint64 { return count() - before }, func() {
		close(done)
		require.NoError(b, <-stopped)
		require.Greater(b, b.drops()["refused"]+b.drops()["rate"], uint64(50), "packets came")
	}
}

func TestTheAttachMethodChangesWithoutAGap(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		if checkTCX() != nil {
			return // there is no tcx to change to
		}
		b.restart(attachClsact)
		absent, stop := b.watchForGaps()
		for range 2 {
			b.restart(attachTCX)
			require.NotContains(b, b.filterNames(b.front), b.ownName())
			require.Equal(b, 1, b.tcxPrograms(b.front))
			b.restart(attachClsact)
			require.Contains(b, b.filterNames(b.front), b.ownName())
			require.Zero(b, b.tcxPrograms(b.front))
		}
		stop()
		require.Zero(b, absent())
	})
}

func TestLaterFiltersSeeAllOtherPackets(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.restart(attachClsact)
		x := b.exchange(true, udp)
		left := frame{from: x.client, to: netip.AddrPortFrom(theGateway[true], 9), toMAC: x.back.HardwareAddr, protocol: udp, payload: []byte("not for a VIP")}
		program, count := b.countingProgram(len(left.bytes()))
		b.addFilter(b.front, program, 1, unix.ETH_P_ALL) // as Cilium's
		b.serveFixtures()
		b.restart(attachClsact)
		require.Equal(b, []string{"somebody", b.ownName()}, b.filterNames(b.front), "of two filters with the same priority the newer filter runs first")
		b.addFilter(b.back, program, 2, unix.ETH_P_ALL)
		b.restart(attachClsact)
		require.Equal(b, []string{b.ownName(), "somebody"}, b.filterNames(b.back))
		before, send := count(), b.sender(b.back)
		require.NoError(b, send(left.bytes()))
		b.eventually(func() bool { return count() == before+1 }, "a later filter sees packets that the program leaves")
		taken := left
		taken.to = x.vip(portOther)
		refused := b.drops()["refused"]
		require.NoError(b, send(taken.bytes()))
		b.eventually(func() bool { return b.drops()["refused"] == refused+1 }, "the program handles packets for a VIP")
		require.Equal(b, before+1, count())

		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Equal(b, []string{"somebody"}, b.filterNames(b.back))
		require.Equal(b, []string{"clsact"}, b.qdiscs(b.back), "a foreign filter uses it")
	})
}

func TestAFilterOfAnotherProtocolKeepsItsPriority(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.restart(attachClsact)
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.NoError(b, netlink.QdiscAdd(qdiscOf(b.front, "clsact")))
		program, _ := b.countingProgram(0)
		b.addFilter(b.front, program, 1, unix.ETH_P_IP)
		b.addFilter(b.front, program, 2, unix.ETH_P_IPV6)
		b.startWith(attachClsact)
		own := b.filters(b.front)
		require.Len(b, own, 3)
		require.EqualValues(b, 3, own[2].Attrs().Priority)
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Len(b, b.filters(b.front), 2)
	})
}

func TestAForeignQdiscIsUsedAndKept(t *testing.T) {
	for _, kind := range []string{"ingress", "clsact"} {
		onGateway(t, func(b *testGateway) {
			require.NoError(b, b.backend.Close(b.Context(), true))
			require.Empty(b, b.qdiscs(b.front))
			require.NoError(b, netlink.QdiscAdd(qdiscOf(b.front, kind)))
			b.startWith(attachClsact)
			require.Equal(b, []string{b.ownName()}, b.filterNames(b.front))
			require.Equal(b, []string{kind}, b.qdiscs(b.front))
			require.Equal(b, []string{"clsact"}, b.qdiscs(b.back))
			b.restart(attachClsact)
			require.NoError(b, b.backend.Close(b.Context(), true))
			require.Equal(b, []string{kind}, b.qdiscs(b.front))
			require.Empty(b, b.filters(b.front))
			require.Empty(b, b.qdiscs(b.back))
		})
	}
}

func TestTheLastDataplaneRemovesTheQdiscThatKubeLBAdded(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.NoError(b, netlink.QdiscAdd(qdiscOf(b.front, "clsact")))
		program, _ := b.countingProgram(0)
		guard := &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: b.front.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 27509, Protocol: unix.ETH_P_ALL},
			Fd: program.FD(), Name: "kubelb_unknown", DirectAction: true}
		require.NoError(b, netlink.FilterAdd(guard))
		b.startWith(attachClsact)
		require.NoError(b, netlink.FilterDel(guard))
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Empty(b, b.qdiscs(b.front))
	})
}

func TestADeletedFilterIsRestored(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.restart(attachClsact)
		require.NoError(b, b.backend.poll(false))
		require.NoError(b, netlink.QdiscDel(qdiscOf(b.front, "clsact")))
		require.ErrorContains(b, b.backend.poll(false), "interface front: another program deleted the filter")
		require.Equal(b, []string{b.ownName()}, b.filterNames(b.front))
		require.NoError(b, b.backend.poll(false))

		require.NoError(b, netlink.QdiscDel(qdiscOf(b.front, "clsact")))
		require.NoError(b, netlink.QdiscAdd(qdiscOf(b.front, "clsact")))
		require.Error(b, b.backend.poll(false))
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Equal(b, []string{"clsact"}, b.qdiscs(b.front), "now it is a foreign qdisc")
		require.Empty(b, b.qdiscs(b.back))
	})
}

func TestThePinsOfARemovedInterfaceAreRemoved(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.restart(attachClsact)
		l, err := netlink.LinkByName("front")
		require.NoError(b, err)
		mark := b.backend.kernel.filter(b.front.Index).marker
		require.DirExists(b, mark)
		require.NoError(b, netlink.LinkDel(l))
		require.NoError(b, b.backend.poll(false))
		require.NoDirExists(b, mark)
		require.NoError(b, b.backend.Close(b.Context(), true))
		left, err := filepath.Glob("/sys/fs/bpf/kubelb-*")
		require.NoError(b, err)
		require.Empty(b, left)
	})
}

func (b *testGateway) tcxPrograms(at *netlink.LinkAttrs) int {
	found, err := link.QueryPrograms(link.QueryOptions{Target: at.Index, Attach: ebpf.AttachTCXIngress})
	require.NoError(b, err)
	return len(found.Programs)
}

func TestUnknownAttachOptionsAreRefused(t *testing.T) {
	_, err := parseOptions(map[string]string{optionAttach: "netkit"})
	require.ErrorContains(t, err, strings.Join(attachModes, ", "))
}
