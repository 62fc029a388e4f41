package ebpf

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
)

// addressIt gives an interface an address.
func (b *bench) addressIt(at *netlink.LinkAttrs, text string) {
	address, err := netlink.ParseAddr(text)
	require.NoError(b, err)
	require.NoError(b, netlink.AddrAdd(&netlink.Veth{LinkAttrs: *at}, address))
}

// outlastSetup has the time be over in which pods are set up.
func (b *bench) outlastSetup() {
	for index, since := range b.backend.kernel.since {
		b.backend.kernel.since[index] = since.Add(-setupTime)
	}
}

// startOnClsact starts the backend anew on clsact. XDP is off, since no other end of these veths takes its frames.
func (b *bench) startOnClsact() {
	require.NoError(b, b.backend.Close(b.Context(), false))
	b.backend = &Backend{}
	options := map[string]string{optionAttach: attachClsact, optionXDP: xdpOff}
	require.NoError(b, b.backend.Configure(b.Context(), dataplane.Config{Node: "gw", StateDir: "gw", Options: options}))
}

func TestAPodIsLeftAloneUntilItIsSetUp(t *testing.T) {
	onBench(t, func(b *bench) {
		b.startOnClsact()
		routed, ptp := b.addVeth("cali1", 0), b.addVeth("veth1", 0)
		b.addressIt(ptp, "10.244.0.1/32")
		for _, pod := range []*netlink.LinkAttrs{routed, ptp} {
			require.NoError(b, b.backend.look(false))
			require.Empty(b, b.entrances(pod))
			require.NoError(b, netlink.QdiscAdd(entranceOf(pod, "ingress")), "as the CNI plugin bandwidth does")
		}
		b.outlastSetup()
		require.NoError(b, b.backend.look(false))
		for _, pod := range []*netlink.LinkAttrs{routed, ptp} {
			require.Equal(b, []string{b.ownName()}, b.filterNames(pod), "then it is served")
			require.Equal(b, []string{"ingress"}, b.entrances(pod))
		}
		b.remove("cali1")
		require.NoError(b, b.backend.look(false))
		require.NotContains(b, b.backend.kernel.since, routed.Index)
	})
}

func TestAPodThatIsThereWhenThePluginStartsIsLeftAloneAsWell(t *testing.T) {
	onBench(t, func(b *bench) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		pod := b.addVeth("cali1", 0)
		b.startOnClsact()
		require.Empty(b, b.entrances(pod))
		require.Equal(b, []string{b.ownName()}, b.filterNames(b.front))
	})
}

func TestWaysToNetworksAreServedAtOnce(t *testing.T) {
	onBench(t, func(b *bench) {
		b.startOnClsact()
		other := b.addVeth("other", 0)
		b.addressIt(other, "10.1.0.1/24")
		require.NoError(b, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}))
		bridge, err := netlink.LinkByName("cni0")
		require.NoError(b, err)
		require.NoError(b, b.backend.look(false))
		for _, at := range []*netlink.LinkAttrs{other, bridge.Attrs()} {
			require.Equal(b, []string{b.ownName()}, b.filterNames(at), at.Name)
		}

		late := b.addVeth("late", 0)
		require.NoError(b, b.backend.look(false))
		require.Empty(b, b.entrances(late))
		b.addressIt(late, "2001:db8:7::1/64")
		require.NoError(b, b.backend.look(false))
		require.Equal(b, []string{b.ownName()}, b.filterNames(late), "once it has an address")
	})
}

func TestAPodIsServedOnByTheNextProcess(t *testing.T) {
	onBench(t, func(b *bench) {
		b.startOnClsact()
		pod := b.addVeth("cali1", 0)
		require.NoError(b, b.backend.look(false))
		b.outlastSetup()
		require.NoError(b, b.backend.look(false))
		b.startOnClsact()
		require.Equal(b, b.loaded(), b.runsAt(pod), "without a gap")
	})
}

func TestByTCXAPodIsServedAtOnceAndOnByClsact(t *testing.T) {
	onBench(t, func(b *bench) {
		if haveTCX() != nil {
			return // there is one way only
		}
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.start(map[string]string{optionAttach: attachTCX, optionXDP: xdpOff})
		pod := b.addVeth("cali1", 0)
		begun := time.Now()
		require.NoError(b, b.backend.look(false))
		require.Equal(b, 1, b.tcxPrograms(pod))
		b.startOnClsact()
		require.Equal(b, []string{b.ownName()}, b.filterNames(pod))
		require.Zero(b, b.tcxPrograms(pod))
		require.Less(b, time.Since(begun), setupTime)
	})
}
