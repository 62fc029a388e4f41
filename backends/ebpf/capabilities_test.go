package ebpf

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// chartCapabilities are the capabilities of the gateway's container in the chart (deploy/charts/kubelb-manager/templates/gateway.yaml).
var chartCapabilities = []uint{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON}

// restrict removes all other capabilities from this thread, which ends with the test.
func (b *testGateway) restrict() {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range chartCapabilities {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	require.NoError(b, unix.Capset(&header, &data[0]))
}

func TestTheCapabilitiesOfTheChartAreEnough(t *testing.T) {
	for _, attach := range []string{attachAuto, attachClsact} {
		onGateway(t, func(b *testGateway) {
			require.NoError(b, b.backend.Close(b.Context(), true))
			b.restrict()
			b.startWith(attach)
			x := b.exchange(true, tcp)
			b.serveFixtures()
			x.open(portPlain)
			x.applyWithout(theNode[true])
			b.serveFixtures()
			require.NoError(b, b.backend.poll(true))
			b.stats()
			require.NoError(b, b.backend.Close(b.Context(), true))
			require.Zero(b, b.programs())
		})
	}
}
