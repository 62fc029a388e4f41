package ebpf

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
)

// addAddress adds an address to an interface.
func (b *testGateway) addAddress(at *netlink.LinkAttrs, text string) {
	address, err := netlink.ParseAddr(text)
	require.NoError(b, err)
	require.NoError(b, netlink.AddrAdd(&netlink.Veth{LinkAttrs: *at}, address))
}

// endSetup makes all waiting interfaces old enough.
func (b *testGateway) endSetup() {
	for index, since := range b.backend.kernel.firstSeen {
		b.backend.kernel.firstSeen[index] = since.Add(-setupTime)
	}
}

// startOnClsact restarts the backend with clsact. XDP is off, since the other ends of these veth pairs do not accept its frames.
func (b *testGateway) startOnClsact() {
	require.NoError(b, b.backend.Close(b.Context(), false))
	b.backend = &Backend{}
	options := map[string]string{optionAttach: attachClsact, optionXDP: xdpOff}
	require.NoError(b, b.backend.Configure(b.Context(), dataplane.Config{StateDir: "gw", Options: options}))
}

func TestANewPodInterfaceGetsNoQdiscDuringItsSetup(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.startOnClsact()
		routed, ptp := b.addVeth("cali1", 0), b.addVeth("veth1", 0)
		b.addAddress(ptp, "10.244.0.1/32")
		for _, pod := range []*netlink.LinkAttrs{routed, ptp} {
			require.NoError(b, b.backend.poll(false))
			require.Empty(b, b.qdiscs(pod))
			require.NoError(b, netlink.QdiscAdd(qdiscOf(pod, "ingress")), "as the CNI plugin bandwidth does")
		}
		b.endSetup()
		require.NoError(b, b.backend.poll(false))
		for _, pod := range []*netlink.LinkAttrs{routed, ptp} {
			require.Equal(b, []string{b.ownName()}, b.filterNames(pod), "attached after the setup")
			require.Equal(b, []string{"ingress"}, b.qdiscs(pod))
		}
		b.remove("cali1")
		require.NoError(b, b.backend.poll(false))
		require.NotContains(b, b.backend.kernel.firstSeen, routed.Index)
	})
}

func TestAPodInterfaceWaitsAtTheStartOfThePluginAsWell(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.NoError(b, b.backend.Close(b.Context(), true))
		pod := b.addVeth("cali1", 0)
		b.startOnClsact()
		require.Empty(b, b.qdiscs(pod))
		require.Equal(b, []string{b.ownName()}, b.filterNames(b.front))
	})
}

func TestInterfacesWithANetworkAreAttachedAtOnce(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.startOnClsact()
		other := b.addVeth("other", 0)
		b.addAddress(other, "10.1.0.1/24")
		require.NoError(b, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}))
		bridge, err := netlink.LinkByName("cni0")
		require.NoError(b, err)
		require.NoError(b, b.backend.poll(false))
		for _, at := range []*netlink.LinkAttrs{other, bridge.Attrs()} {
			require.Equal(b, []string{b.ownName()}, b.filterNames(at), at.Name)
		}

		late := b.addVeth("late", 0)
		require.NoError(b, b.backend.poll(false))
		require.Empty(b, b.qdiscs(late))
		b.addAddress(late, "2001:db8:7::1/64")
		require.NoError(b, b.backend.poll(false))
		require.Equal(b, []string{b.ownName()}, b.filterNames(late), "once it has an address")
	})
}

func TestTheNextProcessAttachesToServedPodInterfacesAtOnce(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.startOnClsact()
		pod := b.addVeth("cali1", 0)
		require.NoError(b, b.backend.poll(false))
		b.endSetup()
		require.NoError(b, b.backend.poll(false))
		b.startOnClsact()
		require.Equal(b, b.loadedProgram(), b.programAt(pod), "without a gap")
	})
}

func TestWithTCXAPodInterfaceIsAttachedAtOnce(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		if checkTCX() != nil {
			return // there is no tcx to change to
		}
		require.NoError(b, b.backend.Close(b.Context(), true))
		b.start(map[string]string{optionAttach: attachTCX, optionXDP: xdpOff})
		pod := b.addVeth("cali1", 0)
		begun := time.Now()
		require.NoError(b, b.backend.poll(false))
		require.Equal(b, 1, b.tcxPrograms(pod))
		b.startOnClsact()
		require.Equal(b, []string{b.ownName()}, b.filterNames(pod))
		require.Zero(b, b.tcxPrograms(pod))
		require.Less(b, time.Since(begun), setupTime)
	})
}
