package nftables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// apart returns n networks with gaps between them.
func apart(n int) []netip.Prefix {
	out := make([]netip.Prefix, n)
	for i := range out {
		out[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 256), byte(i), 0}), 25)
	}
	return out
}

func restricted(f model.Frontend, ranges ...netip.Prefix) model.Frontend {
	f.Restricted, f.SourceRanges = true, ranges
	return f
}

// manyPorts returns the records of a LoadBalancer with that many ports and source ranges.
func manyPorts(ports, ranges int) model.Snapshot {
	s := model.Snapshot{Pools: []model.Pool{labPool("all", true, 0)}}
	for port := range ports {
		s.Frontends = append(s.Frontends, restricted(labFrontend(model.TCP, lab.VIP(true, 1), uint16(1000+port), 30080, "all"), apart(ranges)...))
	}
	return s
}

func TestPortsOfALoadBalancerShareItsSourceRanges(t *testing.T) {
	text, err := (&Backend{}).Render(t.Context(), manyPorts(256, 128))
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(text, "set "+elements.RangesPrefix), "one list")
	require.Equal(t, 128, strings.Count(text, ".0/25"), "each network once")
	require.Equal(t, 256, strings.Count(text, " : goto "+elements.RangesPrefix), "an element of each port leads to it")
}

func TestTheNameOfAListOfSourceRangesDependsOnItsContent(t *testing.T) {
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	list := elements.RangesOf(prefixes("192.0.2.128/25", "192.0.2.0/25", "192.0.2.7/32", "198.18.0.0/15"))
	require.Equal(t, []string{"192.0.2.0/24", "198.18.0.0/15"}, intervals(list))
	require.Equal(t, list, elements.RangesOf(prefixes("198.18.0.0/15", "192.0.2.0/24")))
	require.Equal(t, []string{"192.0.2.1-192.0.2.2", "192.0.2.4"}, intervals(elements.RangesOf(prefixes("192.0.2.1/32", "192.0.2.2/32", "192.0.2.4/32"))))
	require.Equal(t, []string{"::/0"}, intervals(elements.RangesOf(prefixes("::/1", "8000::/1"))))
	require.Empty(t, intervals(elements.RangesOf(nil)))
	require.NotEqual(t, list.Name, elements.RangesOf(nil).Name)
}

func TestAListOfSourceRangesIsDeletedWithItsLastFrontend(t *testing.T) {
	g := newGateway(t)
	lists := func() int {
		text := g.nft("", "list", "ruleset")
		require.Equal(t, strings.Count(text, "set "+elements.RangesPrefix), strings.Count(text, "chain "+elements.RangesPrefix))
		return strings.Count(text, "set "+elements.RangesPrefix)
	}
	s := manyPorts(3, 5)
	everywhere := netip.MustParsePrefix("0.0.0.0/0")
	s.Frontends[2] = restricted(s.Frontends[2], everywhere)
	g.apply(s)
	require.Equal(t, 2, lists())
	g.restart()
	require.True(t, g.apply(s).Delta.Empty(), "a new process adopts it")
	s.Frontends[2].SourceRanges = apart(5)
	g.apply(s)
	require.Equal(t, 1, lists(), "the list without users is deleted")
	s.Frontends[0] = restricted(s.Frontends[0])
	s.Frontends[1].Restricted, s.Frontends[1].SourceRanges = false, nil
	g.apply(s)
	require.Equal(t, 2, lists(), "the empty list is a list, too")
	g.restart()
	s.Frontends = s.Frontends[1:2]
	g.apply(s)
	require.Zero(t, lists())
}

func TestRenderedSourceRangesEqualTheKernels(t *testing.T) {
	g := newGateway(t)
	g.restartWithOption(flowtableOff)
	s := manyPorts(2, 3)
	for i, text := range []string{"0.0.0.0/0", "255.255.255.255/32", "192.0.2.1/32", "0.0.0.0/1"} {
		s.Frontends = append(s.Frontends, restricted(labFrontend(model.UDP, lab.VIP(true, 2), uint16(53+i), 30053, "all"), netip.MustParsePrefix(text)))
	}
	text, err := g.Render(t.Context(), s)
	require.NoError(t, err)
	g.apply(s)
	held := g.nft("", "list", "table", "ip", "kubelb")
	for _, f := range s.Frontends {
		list := elements.RangesOf(f.SourceRanges)
		for _, part := range []string{"set " + list.Name, "chain " + list.Name} {
			require.Equal(t, block(text, part), block(held, part), fmt.Sprint(f.SourceRanges))
		}
	}
}

// block returns the part of a table that begins with this text, without white space.
func block(text, begins string) string {
	_, rest, _ := strings.Cut(text, "\t"+begins+" {")
	body, _, _ := strings.Cut(rest, "\n\t}")
	return strings.Join(strings.Fields(strings.ReplaceAll(body, "counter name not_allowed", "counter name \"not_allowed\"")), " ")
}
