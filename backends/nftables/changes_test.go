package nftables

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

func TestAKeyOfAnElementIsReadAsItWasWritten(t *testing.T) {
	for _, vip := range []string{"203.0.113.1", "2001:db8:f::1"} {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			key := model.FrontendKey{VIP: netip.MustParseAddr(vip), Protocol: protocol, Port: 65535}
			read, err := decodeKey(elements.Frontend(key))
			require.NoError(t, err)
			require.Equal(t, key, read)
		}
	}
	for _, length := range []int{0, 7, 8, 11, 13, 25} {
		_, err := decodeKey(make([]byte, length))
		require.ErrorContains(t, err, "frontend key of ", "%d bytes", length)
	}
	padded := elements.Frontend(model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80})
	padded[len(padded)-1] = 1
	_, err := decodeKey(padded)
	require.ErrorContains(t, err, "are not zero", "no plan removes this key")
}

func TestElementsAreRenderedAsNftWritesThem(t *testing.T) {
	for _, c := range []struct {
		set  string
		e    nft.SetElement
		want string
		of   family
	}{
		{setVIPs, nft.SetElement{Key: []byte{203, 0, 113, 1}}, "203.0.113.1", families[0]},
		{setVIPs, nft.SetElement{Key: netip.MustParseAddr("2001:db8::1").AsSlice()}, "2001:db8::1", families[1]},
		{mapRegistry, nft.SetElement{Key: mark(7), Val: mark(13), Comment: "d a/p"}, `0x00000007 comment "d a/p" : 0x0000000d`, families[0]},
		{mapRows, nft.SetElement{Key: rowKey(1, 2), Val: mark(handleBit + 1)}, "0x00000001 . 0x00000002 : 0x80000001", families[0]},
		{mapEndpoints, nft.SetElement{Key: mark(handleBit + 1), Val: []byte{198, 51, 100, 1}, Comment: "1 n"}, `0x80000001 counter packets 0 bytes 0 comment "1 n" : 198.51.100.1`, families[0]},
		{mapFlows, nft.SetElement{Key: mark(7), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: "flow-13"}}, "0x00000007 : jump flow-13", families[0]},
		{mapRanges, nft.SetElement{Key: elements.Frontend(model.FrontendKey{VIP: netip.MustParseAddr("2001:db8::1"), Protocol: model.UDP, Port: 53}),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: "ranges-1"}}, "2001:db8::1 . udp . 53 : goto ranges-1", families[1]},
		{mapPorts, nft.SetElement{Key: elements.Frontend(model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}), Val: []byte{0x75, 0x80}},
			"203.0.113.1 . tcp . 80 counter packets 0 bytes 0 : 30080", families[0]},
	} {
		table := newTable(c.of, newEgress("kubelb"))
		require.Equal(t, c.want, table.element(keySet{set: *table.sets[c.set]}, c.e))
	}
}

func TestOnlyRowsShareALineOfText(t *testing.T) {
	seven := strings.Split("a b c d e f g", " ")
	require.Len(t, strings.Split(joinElements(seven, mapRows), "\n"), 2)
	require.Len(t, strings.Split(joinElements(seven, mapPools), "\n"), 7)
}

func TestAnUnservableRecordIsNamedByRender(t *testing.T) {
	f := labFrontend(model.TCP, netip.MustParseAddr("203.0.113.1"), 80, 30080, "unknown")
	_, err := (&Backend{}).Render(t.Context(), model.Snapshot{Frontends: []model.Frontend{f}})
	require.EqualError(t, err, "frontend TCP 203.0.113.1:80: pool t/unknown does not exist in this dataplane")
	_, err = (&Backend{}).Render(t.Context(), model.Snapshot{Pools: []model.Pool{{ID: model.PoolID(strings.Repeat("x", maxPoolName+1)), Tenant: "t"}}})
	require.ErrorContains(t, err, "pool xxx")
}

func TestEachFamilyIsRenderedIntoItsOwnTable(t *testing.T) {
	f := labFrontend(model.TCP, netip.MustParseAddr("2001:db8:f::1"), 80, 30080, "six")
	f.Forwarding = model.Direct
	six := model.Pool{ID: "t/six", Tenant: "t", Endpoints: []model.Endpoint{{ID: "n", Address: netip.MustParseAddr("2001:db8::1"), Weight: 1}}}
	text, err := (&Backend{}).Render(t.Context(), model.Snapshot{Pools: []model.Pool{six}, Frontends: []model.Frontend{f}})
	require.NoError(t, err)
	four, rest, found := strings.Cut(text, "table ip6 kubelb {")
	require.True(t, found)
	sixth, egress, found := strings.Cut(rest, "table netdev kubelb {")
	require.True(t, found)
	require.NotContains(t, four, "2001:db8")
	require.Contains(t, sixth, "2001:db8:f::1 . tcp . 80")
	require.Contains(t, egress, `comment "TCP [2001:db8:f::1]:80" : 2001:db8:f::1`)
}

// The counts of a transaction are sums over its records.
func TestChangesOfListsOfSourceRangesAreSummed(t *testing.T) {
	a, b := elements.RangesOf(apart(2)), elements.RangesOf(apart(3))
	sum := rangeChanges{}
	sum.change(a.Name, a, 1)
	sum.change(a.Name, elements.Ranges{}, -1)
	sum.add(rangeChanges{a.Name: {a, 1}, b.Name: {b, 1}})
	require.Equal(t, rangeChanges{a.Name: {a, 1}, b.Name: {b, 1}}, sum, "the content stays known")
	require.Equal(t, 4+6, sum.size(map[string]int{}))
	require.Equal(t, 6, sum.size(map[string]int{a.Name: 1}), "an existing list is not sent")
	users := map[string]int{a.Name: 2}
	sum.commit(users)
	require.Equal(t, map[string]int{a.Name: 3, b.Name: 1}, users)
	rangeChanges{a.Name: {users: -3}}.commit(users)
	require.Equal(t, map[string]int{b.Name: 1}, users)
}

func TestALimitWithoutChainsIsMissing(t *testing.T) {
	have := limits{connectionLimit: {5: true}, "rate": {}}
	require.Equal(t, limits{connectionLimit: {}, "rate": {5: true}}, have.missing(map[string]uint32{connectionLimit: 5, "rate": 5}))
	require.Equal(t, newLimits(), have.missing(map[string]uint32{connectionLimit: 0, "rate": 0}), "no limit needs no chain")
	have.merge(limits{"rate": {5: true, 6: true}})
	require.Equal(t, limits{connectionLimit: {5: true}, "rate": {5: true, 6: true}}, have)
}

// The kernel's count for a frontend would stay, and would be that of the next frontend with the address and port.
func TestTheCountOfAFormerLimitIsDeleted(t *testing.T) {
	key, vip := []byte("key"), netip.MustParseAddr("203.0.113.1")
	uncounted := func(old, next map[string]uint32) (sets []string, slow int) {
		p := &plan{}
		planLimits(p, vip, key, old, next)
		for _, e := range p.toUncount {
			require.Equal(t, key, e.element.Key)
			sets = append(sets, e.set)
		}
		return sets, p.slow[vip]
	}
	five, six := map[string]uint32{connectionLimit: 5}, map[string]uint32{connectionLimit: 6}
	for _, c := range []struct {
		old, next map[string]uint32
		sets      []string
		slow      int
	}{
		{nil, five, nil, 1},
		{five, five, nil, 0},
		{five, six, []string{"counted_connections_5"}, 0},
		{six, nil, []string{"counted_connections_6"}, -1},
		{map[string]uint32{"rate": 9}, nil, []string{"counted_rate_9"}, 0},
	} {
		sets, slow := uncounted(c.old, c.next)
		require.Equal(t, c.sets, sets, "%v, then %v", c.old, c.next)
		require.Equal(t, c.slow, slow, "%v, then %v", c.old, c.next)
	}
}

func TestAFlowBeyondALimitIsDropped(t *testing.T) {
	l := described(families[0])
	for _, k := range limitKinds() {
		c := l.limitChain(k, 7)
		require.Equal(t, k.name+"-7", c.name)
		require.Len(t, c.rules, 1)
		texts := []string{c.rules[0][0].text, c.rules[0][1].text, c.rules[0][2].text}
		require.Contains(t, texts[0], "over 7")
		require.Contains(t, texts[0], "@"+k.set(7))
		require.Equal(t, []string{"counter name limited", "drop"}, texts[1:])
		require.True(t, l.limitSet(k, 7).set.Dynamic, "the kernel adds frontends itself")
		require.EqualValues(t, maxLimited, l.limitSet(k, 7).set.Size)
	}
}

func TestAScanThatTakesLongIsRepeatedLater(t *testing.T) {
	require.True(t, scan{}.isDue(), "there was none")
	require.True(t, scan{time.Now().Add(-time.Hour), time.Minute}.isDue())
	require.False(t, scan{time.Now().Add(-time.Minute), time.Minute}.isDue())
}

func TestTheNamesOfChainsOfVerdictsAreRead(t *testing.T) {
	for chain, want := range map[string]uint32{"ask-1": 1, "ask-4294967295": 4294967295} {
		n, err := numberOfChain(nft.SetElement{Val: verdictOf(chain)}, "ask")
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	for _, chain := range []string{"ask-", "ask", "ask--1", "rate-1", "ask-4294967296"} {
		_, err := numberOfChain(nft.SetElement{Val: verdictOf(chain)}, "ask")
		require.EqualError(t, err, `chain "`+chain+`" is not ask-<number>`)
	}
	_, err := chainOf(nft.SetElement{Val: []byte{1}})
	require.Error(t, err, "a truncated attribute")
}

// verdictOf returns the value of an element as the kernel returns it: a verdict's chain is attribute 2, with a zero byte at its end.
func verdictOf(chain string) []byte {
	text := append([]byte(chain), 0)
	b := []byte{byte(4 + len(text)), 0, 2, 0}
	b = append(b, text...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func TestAFrontendIsEitherTransparentOrDirect(t *testing.T) {
	f := &frontendState{target: 80}
	require.NoError(t, f.setForwarding(model.Direct))
	require.EqualError(t, f.setForwarding(model.Transparent), "its forwarding is both direct and transparent")
	require.EqualError(t, f.validate(), "it is direct and has no number")
	f.direct = directNumbers + 1
	require.NoError(t, f.validate())
}

func TestAFailedRecordIsReportedAloneAndTheOthersArePlanned(t *testing.T) {
	a := &apply{backend: &Backend{}, ended: newEnded()}
	planned := 0
	a.each(3, func(i int) (record, error) {
		r := record{failed: dataplane.RecordError{Pool: model.PoolID("t/" + string(rune('a'+i)))}}
		if i == 1 {
			return r, dataplane.MissingPool("t/x")
		}
		planned++
		return r, nil
	})
	require.Equal(t, []dataplane.RecordError{{Pool: "t/b", Message: "pool t/x does not exist in this dataplane"}}, a.failed)
	require.Equal(t, 2, planned)
	require.Zero(t, a.operations, "records without a change send nothing")
}

func TestFrontendsWhoseFlowsEndAreCollected(t *testing.T) {
	key := func(port uint16) model.FrontendKey {
		return model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: port}
	}
	e := newEnded()
	e.add(&plan{removed: []model.FrontendKey{key(80)}, added: []model.FrontendKey{key(81)}})
	e.add(&plan{removed: []model.FrontendKey{key(82)}})
	require.Equal(t, map[model.FrontendKey]bool{key(80): true, key(82): true}, e.removed)
	require.Equal(t, map[model.FrontendKey]bool{key(81): true}, e.added)
	require.Equal(t, map[netip.Addr]bool{key(80).VIP: true}, e.vips, "an added frontend's address was no VIP before")
}
