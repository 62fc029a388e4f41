package envoy

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func TestPortsOfALoadBalancerShareItsSourceRanges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	l, err := lab.New(1)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	var apart []netip.Prefix
	for i := range 128 {
		apart = append(apart, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 25))
	}
	var ports []frontendRules
	var keys []model.FrontendKey
	for port := range 256 {
		f := web(model.TCP, uint16(1000+port))
		f.Restricted, f.SourceRanges = true, apart
		ports, keys = append(ports, frontendRules{Frontend: f, served: port%2 == 0}), append(keys, f.FrontendKey)
	}
	require.NoError(t, l.Gateways[0].Do(func() error {
		g := newRuleset("ruleset-test")
		list := func() string {
			text, err := exec.Command("nft", "list", "table", "ip", "ruleset-test").CombinedOutput()
			require.NoError(t, err, string(text))
			return string(text)
		}
		require.NoError(t, g.install(nil))
		require.NoError(t, g.change(ports, nil))
		text := list()
		require.Equal(t, 1, strings.Count(text, "set "+elements.RangesPrefix), "one list")
		require.Equal(t, 128, strings.Count(text, ".0/25"), "each network once")
		require.Equal(t, 256, strings.Count(text, " : goto "+elements.RangesPrefix), "an element of each port leads to it")

		ports[0].SourceRanges = nil
		require.NoError(t, g.change(ports[:1], nil))
		require.Equal(t, 2, strings.Count(list(), "set "+elements.RangesPrefix), "the empty list is a list, too")
		require.NoError(t, g.change(nil, keys))
		require.NotContains(t, list(), elements.RangesPrefix, "a list is deleted with its last port")
		return g.remove()
	}))
}
