package nftables

import (
	"slices"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// allChains returns the fixed chains, and those of an affinity timeout, of limits and of a list of source ranges.
func allChains(l layout) []chain {
	out := append(l.chains(), l.affinityChains(time.Minute)...)
	for _, k := range limitKinds() {
		out = append(out, l.limitChain(k, 7))
	}
	return append(out, l.rangesChain("ranges-1"))
}

// each calls f for each expression of the chains.
func each(chains []chain, f func(in chain, rule string, e expr.Any)) {
	for _, c := range chains {
		for _, rule := range c.rules {
			var texts []string
			for _, s := range rule {
				texts = append(texts, s.text)
			}
			for _, e := range exprsOf(rule) {
				f(c, strings.Join(texts, " "), e)
			}
		}
	}
}

func named(chains []chain, name string) chain {
	i := slices.IndexFunc(chains, func(c chain) bool { return c.name == name })
	if i < 0 {
		return chain{}
	}
	return chains[i]
}

// The kernel refuses a jump to a chain that is not there yet.
func TestChainsComeBeforeTheirCallers(t *testing.T) {
	for _, f := range families {
		known := map[string]bool{}
		for _, c := range allChains(described(f)) {
			known[c.name] = true
			each([]chain{c}, func(in chain, rule string, e expr.Any) {
				if v, ok := e.(*expr.Verdict); ok && v.Chain != "" {
					require.True(t, known[v.Chain], "chain %s: %s", in.name, rule)
				}
			})
		}
	}
}

func TestNoTwoChainsHaveTheSameName(t *testing.T) {
	for _, f := range families {
		seen := map[string]bool{}
		for _, c := range append(allChains(described(f)), egressChains()...) {
			require.False(t, seen[c.name], c.name)
			seen[c.name] = true
		}
	}
}

func TestRulesReadOnlySetsOfTheTable(t *testing.T) {
	for _, f := range families {
		l := described(f)
		known := map[string]nft.Set{"": {}, "ranges-1": {}} // "" is the anonymous set of protocols
		for _, s := range l.sets() {
			known[s.name] = s.set
		}
		each(allChains(l), func(in chain, rule string, e expr.Any) {
			lookup, ok := e.(*expr.Lookup)
			if !ok {
				return
			}
			require.Contains(t, known, lookup.SetName, "chain %s: %s", in.name, rule)
			require.Equal(t, known[lookup.SetName].IsMap, lookup.IsDestRegSet, "chain %s: %s", in.name, rule)
		})
	}
}

func TestEachMapOfVerdictsIsReadByTheRuleOfItsFeature(t *testing.T) {
	l := described(families[0])
	readers := map[string][]string{}
	each(allChains(l), func(in chain, _ string, e expr.Any) {
		if lookup, ok := e.(*expr.Lookup); ok && lookup.SetName != "" {
			readers[lookup.SetName] = append(readers[lookup.SetName], in.name)
		}
	})
	for set, chain := range map[string]string{mapRanges: "check_source", mapRedirects: "admit_vip", mapAffinities: "prerouting", mapFlows: "spread",
		"connection_limits": "admit_frontend", "rate_limits": "admit_frontend", mapEndpoints: "forward", mapPorts: "forward", mapMembers: "forward_to_node"} {
		require.Contains(t, readers[set], chain, set)
	}
}

func TestDroppedPacketsAreCountedByTheirReason(t *testing.T) {
	l := described(families[0])
	for name, counter := range map[string]string{"refuse": counterRefused, "check_source": counterNotAllowed, "ranges-1": counterNotAllowed,
		limitKinds()[0].chain(7): counterLimited, limitKinds()[1].chain(7): counterLimited} {
		counted := ""
		each([]chain{named(allChains(l), name)}, func(_ chain, _ string, e expr.Any) {
			if o, ok := e.(*expr.Objref); ok {
				counted = o.Name
			}
		})
		require.Equal(t, counter, counted, name)
		require.Contains(t, counters(), counter)
	}
}

func TestEachSizeOfAPoolHasItsChains(t *testing.T) {
	for _, f := range families {
		chains := described(f).chains()
		for _, size := range maglev.Sizes() {
			for _, name := range []string{flowChain(size), sourceChain(size)} {
				moduli := map[uint32]bool{}
				each([]chain{named(chains, name)}, func(_ chain, _ string, e expr.Any) {
					if h, ok := e.(*expr.Hash); ok {
						moduli[h.Modulus] = true
						require.EqualValues(t, hashSeed, h.Seed, "the same on all gateways")
					}
				})
				require.Equal(t, map[uint32]bool{uint32(size): true}, moduli, name)
			}
		}
	}
}

// A redirected packet must not circle among the gateways for ever.
func TestAPacketIsRedirectedAtMostAsOftenAsItsFrontendAllows(t *testing.T) {
	for _, f := range families {
		l := described(f)
		for limit := 1; limit <= model.MaxRedirects; limit++ {
			c := named(l.chains(), redirectChain(uint8(limit)))
			require.Len(t, c.rules, 4)
			refused := func(ttl int) bool { return ttl >= minTTL && ttl <= firstTTL-limit }
			redirects := 0
			for ttl := firstTTL; !refused(ttl); ttl-- {
				redirects++
			}
			require.Equal(t, limit, redirects)
			if limit < model.MaxRedirects {
				require.Contains(t, c.rules[0][0].text, "-", "several values")
			}
			require.Equal(t, l.ttlBetween(minTTL, firstTTL-limit), c.rules[0][0])
			require.Equal(t, "goto refuse", c.rules[0][1].text)
			require.Equal(t, []string{l.ttlBelow(minTTL).text, l.setTTL(firstTTL).text}, []string{c.rules[1][0].text, c.rules[1][1].text}, "the first gateway begins to count")
			require.Equal(t, "drop", c.rules[3][0].text, "a packet that cannot be sent on goes nowhere")
		}
	}
}

func TestOnlyPacketsForVIPsAreAdmitted(t *testing.T) {
	for _, f := range families {
		admit := named(described(f).baseChains(), "admit")
		require.Len(t, admit.rules, 1)
		require.Equal(t, f.name+" daddr @vips", admit.rules[0][0].text)
		require.Equal(t, "jump admit_vip", admit.rules[0][1].text)
		rules := named(described(f).chains(), "admit_vip").rules
		require.Equal(t, "drop", rules[len(rules)-1][0].text, "what no rule knows")
	}
}

func TestBaseChainsLetOtherPacketsPass(t *testing.T) {
	for _, c := range described(families[0]).chains() {
		require.Equal(t, c.hook != nil, c.text != "", c.name)
		if c.hook != nil {
			require.True(t, strings.HasPrefix(c.text, "type "+string(c.kind)+" hook "), "%s: %s", c.name, c.text)
			require.True(t, strings.HasSuffix(c.text, "policy accept;"), c.name)
		}
	}
}

func TestStatementsOfBothFamiliesDifferOnlyInTheirHeaders(t *testing.T) {
	four, six := allChains(described(families[0])), allChains(described(families[1]))
	require.Len(t, six, len(four))
	texts := func(c chain) (out []string) {
		r := strings.NewReplacer("ip6 hoplimit", "ttl", "ip ttl", "ttl", "ip6 ", "ip ", "icmpv6 ", "icmp ", "vips_ip6", "vips_ip", "ipv6-icmp", "icmp")
		for _, rule := range c.rules {
			for _, s := range rule {
				out = append(out, r.Replace(s.text))
			}
		}
		return out
	}
	for i := range four {
		require.Equal(t, four[i].name, six[i].name)
		require.Equal(t, texts(four[i]), texts(six[i]), four[i].name)
	}
}

func TestAChoiceByAddressLeavesOutThePort(t *testing.T) {
	for _, f := range families {
		lengths := func(s statement) (out []uint32) {
			for _, e := range s.exprs {
				if h, ok := e.(*expr.Hash); ok {
					out = append(out, h.Length)
				}
			}
			return out
		}
		require.Equal(t, []uint32{f.size + 4}, lengths(f.rowFromFlow(7)), "a port fills a register")
		require.Equal(t, []uint32{f.size}, lengths(f.rowFromSource(7)))
	}
}

func TestTheTTLIsReadWhereItIsInTheHeader(t *testing.T) {
	for _, f := range families {
		at := map[string]uint32{"ip": 8, "ip6": 7}[f.name]
		for _, s := range []statement{f.ttlBetween(3, 5), f.ttlBetween(3, 3), f.ttlBelow(3)} {
			load, ok := s.exprs[0].(*expr.Payload)
			require.True(t, ok)
			require.Equal(t, [2]uint32{at, 1}, [2]uint32{load.Offset, load.Len}, s.text)
		}
	}
	require.Equal(t, "ip ttl 3", families[0].ttlBetween(3, 3).text)
	require.Equal(t, "ip6 hoplimit 3-5", families[1].ttlBetween(3, 5).text)
	require.Equal(t, "ip ttl < 3", families[0].ttlBelow(3).text)
}

func TestASetTTLUpdatesTheChecksumThatOnlyIPv4Has(t *testing.T) {
	writes := func(f family) *expr.Payload {
		all := f.setTTL(255).exprs
		w, ok := all[len(all)-1].(*expr.Payload)
		require.True(t, ok)
		require.Equal(t, expr.PayloadWrite, w.OperationType)
		return w
	}
	require.Equal(t, expr.CsumTypeInet, writes(families[0]).CsumType)
	require.EqualValues(t, 10, writes(families[0]).CsumOffset)
	require.Equal(t, expr.CsumTypeNone, writes(families[1]).CsumType)
	require.EqualValues(t, 7, writes(families[1]).Offset)
}
