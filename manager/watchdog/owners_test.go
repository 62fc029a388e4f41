package watchdog

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

func TestPreflightNamesAnInterfaceOfAnotherProgramUnderANameOfThePair(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		lacking := func() (subjects []string) {
			for _, c := range dataplane.Lacking(OwnerChecks()) {
				assert.False(t, c.Required(), "the gateway starts")
				subjects = append(subjects, c.Subject)
			}
			return subjects
		}
		assert.Len(t, OwnerChecks(), 2)
		assert.Empty(t, lacking())
		assert.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostInterface, HardwareAddr: hostMAC}, PeerName: clientInterface, PeerHardwareAddr: clientInterfaceMAC}))
		assert.Empty(t, lacking(), "the interfaces of a gateway")
		assert.NoError(t, removeVethPair())
		assert.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostInterface}, PeerName: "other"}))
		assert.Equal(t, []string{"interface kubelb-watch"}, lacking())
	})
}
