package ebpf

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

func TestPreflightOfAHostThatForwardsOneFamilyLimitsTheOther(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	require.True(t, preflight.InOwnNetwork(func() {
		assert.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
		assert.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0))
		checks, err := (&Backend{}).Preflight(t.Context(), dataplane.Config{StateDir: t.TempDir()})
		assert.NoError(t, err)
		states := map[string]dataplane.Check{}
		for _, c := range checks {
			states[c.Subject] = c
		}
		assert.Equal(t, dataplane.CheckOK, states["sysctl net.ipv4.ip_forward"].State)
		lacking := states["sysctl net.ipv6.conf.all.forwarding"]
		assert.Equal(t, dataplane.CheckMissing, lacking.State)
		assert.Equal(t, "IPv6 frontends", lacking.Costs)
	}))
}
