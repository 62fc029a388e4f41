package elements

import (
	"net/netip"
	"strings"
	"testing"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
)

func networks(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// ends returns the addresses of the elements. A ] stands before an address that ends an interval.
func ends(r Ranges) (out []string) {
	for _, e := range r.Elements() {
		a, _ := netip.AddrFromSlice(e.Key)
		text := a.String()
		if e.IntervalEnd {
			text = "]" + text
		}
		out = append(out, text)
	}
	return out
}

func TestAnIntervalEndsBeforeTheAddressBehindIt(t *testing.T) {
	for text, want := range map[string][]string{
		"192.0.2.0/24":                    {"192.0.2.0", "]192.0.3.0"},
		"192.0.2.7/32":                    {"192.0.2.7", "]192.0.2.8"},
		"192.0.2.0/25 192.0.2.128/25":     {"192.0.2.0", "]192.0.3.0"},
		"192.0.2.9/32 192.0.2.0/31":       {"192.0.2.0", "]192.0.2.2", "192.0.2.9", "]192.0.2.10"},
		"2001:db8::/32":                   {"2001:db8::", "]2001:db9::"},
		"255.255.255.255/32 10.0.0.0/8":   {"10.0.0.0", "]11.0.0.0", "255.255.255.255"},
		"::/0":                            {"::"},
		"192.0.2.0/24 192.0.2.16/28":      {"192.0.2.0", "]192.0.3.0"},
		"0.0.0.0/0 255.255.255.255/32":    {"0.0.0.0"},
		"10.0.0.0/32 10.0.0.1/32 ::1/128": {"10.0.0.0", "]10.0.0.2", "::1", "]::2"},
	} {
		require.Equal(t, want, ends(RangesOf(networks(strings.Fields(text)...))), text)
	}
	require.Empty(t, ends(RangesOf(nil)))
}

func TestAnIntervalIsANetworkOnlyIfItHasAllOfItsAddresses(t *testing.T) {
	for text, want := range map[string]string{"192.0.2.0 192.0.2.255": "192.0.2.0/24", "192.0.2.7 192.0.2.7": "192.0.2.7/32", "192.0.2.1 192.0.2.2": "",
		"192.0.2.0 192.0.2.2": "", "0.0.0.0 255.255.255.255": "0.0.0.0/0", "2001:db8:: 2001:db8::3": "2001:db8::/126"} {
		first, last, _ := strings.Cut(text, " ")
		network, is := Network(ipam.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)})
		require.Equal(t, want != "", is, text)
		if is {
			require.Equal(t, want, network.String())
		}
	}
}

func TestTheNameOfAListIsALegalNameOfASetAndAChain(t *testing.T) {
	name := RangesOf(networks("192.0.2.0/24")).Name
	require.Regexp(t, "^"+RangesPrefix+"[0-9a-f]{32}$", name)
	set := RangesOf(networks("192.0.2.0/24")).Set(&nft.Table{Name: "kubelb"}, nft.TypeIPAddr)
	require.Equal(t, name, set.Name)
	require.True(t, set.Interval)
	require.False(t, set.IsMap)
}

func TestEachPartOfAFrontendFillsWholeRegisters(t *testing.T) {
	four := Frontend(model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 0x1234})
	require.Equal(t, []byte{203, 0, 113, 1, 6, 0, 0, 0, 0x12, 0x34, 0, 0}, four)
	six := Frontend(model.FrontendKey{VIP: netip.MustParseAddr("::1"), Protocol: model.UDP, Port: 53})
	require.Equal(t, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 53, 0, 0}, six)
}
