package nftables

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane/golden"
	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

func TestRenderedTextIsGoldenAndNftAcceptsIt(t *testing.T) {
	text, err := (&Backend{}).Render(t.Context(), golden.Example())
	require.NoError(t, err)
	golden.Compare(t, "example.nft", text)
	// nft checks with the kernel. In its own user and network namespace it needs no privileges.
	check := exec.Command("unshare", "--map-root-user", "--net", "nft", "--check", "--file", "-")
	check.Stdin = strings.NewReader(text)
	output, err := check.CombinedOutput()
	require.NoError(t, err, string(output))
}

func endpoints(n int) []model.Endpoint {
	out := make([]model.Endpoint, n)
	for i := range out {
		a := netip.AddrFrom4([4]byte{198, 51, byte(100 + i/250), byte(1 + i%250)})
		out[i] = model.Endpoint{ID: a.String(), Address: a, Weight: 1}
	}
	return out
}

// edits plans a pool, commits the plan and returns the number of changed elements by map.
func edits(t *testing.T, s *state, p model.Pool) map[string]int {
	t.Helper()
	plan, err := s.planPool(p)
	require.NoError(t, err)
	plan.commit()
	counts := map[string]int{}
	for _, e := range plan.edits {
		counts[e.set]++
	}
	return counts
}

func TestARemovedEndpointChangesItsRowsAndFewOthers(t *testing.T) {
	s := newState(families[0])
	pool := model.Pool{ID: "a/p", Tenant: "a", Endpoints: endpoints(20)}
	edits(t, s, pool)
	rows := s.pools["a/p"].size
	pool.Endpoints = pool.Endpoints[1:]
	changed := edits(t, s, pool)
	require.Equal(t, rows, s.pools["a/p"].size)
	require.Equal(t, 1, changed[mapEndpoints])
	// Each changed row is one removal and one addition; the ideal is a twentieth of the rows.
	require.Less(t, changed[mapRows]/2, rows*11/100)
	require.GreaterOrEqual(t, changed[mapRows]/2, rows/20)
}

func TestUnchangedRecordsSendNothing(t *testing.T) {
	s := newState(families[0])
	pool := model.Pool{ID: "a/p", Tenant: "a", Endpoints: endpoints(5)}
	edits(t, s, pool)
	pool.Endpoints[0].Weight = 1
	changed := edits(t, s, pool)
	require.Equal(t, map[string]int{mapRegistry: 2}, changed, "only the digest is written")
}

func TestAFrontendHasTwoElementsWhateverItsPool(t *testing.T) {
	for _, n := range []int{1, 100} {
		s := newState(families[0])
		edits(t, s, model.Pool{ID: "a/p", Tenant: "a", Endpoints: endpoints(n)})
		plan, err := s.planFrontend(model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}, Tenant: "a", Pool: "a/p", TargetPort: 30080})
		require.NoError(t, err)
		require.Len(t, plan.edits, 2, "%d endpoints", n)
	}
}

func TestAFrontendKeepsItsNumberForClientsWithAnyPoolOfItsTenant(t *testing.T) {
	s := newState(families[0])
	for _, id := range []model.PoolID{"a/p", "a/r", "b/q"} {
		edits(t, s, model.Pool{ID: id, Tenant: id.Tenant(), Endpoints: endpoints(2)})
	}
	f := model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}, Tenant: "a", Pool: "a/p", TargetPort: 30080, AffinityTimeout: time.Minute}
	number := func() uint32 {
		plan, err := s.planFrontend(f)
		require.NoError(t, err)
		plan.commit()
		return s.frontends[f.FrontendKey].number
	}
	first := number()
	f.TargetPort++
	require.Equal(t, first, number(), "another port")
	f.Pool = "a/r"
	require.Equal(t, first, number(), "another pool")
	f.Tenant, f.Pool = "b", "b/q"
	require.NotEqual(t, first, number(), "another tenant")
}

func TestAnEndpointHasOneNodeInAllPools(t *testing.T) {
	s := newState(families[0])
	node := func(pool model.PoolID, i int) uint32 { return s.pools[pool].endpoints[endpoints(5)[i].ID].node }
	p, q := model.Pool{ID: "a/p", Tenant: "a", Endpoints: endpoints(2)}, model.Pool{ID: "a/q", Tenant: "a", Endpoints: endpoints(3)}
	edits(t, s, p)
	require.Equal(t, map[string]int{mapRegistry: 1, mapFlows: 1, mapSources: 1, mapRows: maglev.Sizes()[1], mapEndpoints: 3, mapNodes: 3, mapMembers: 3}, edits(t, s, q))
	first := node("a/p", 0)
	require.NotEqual(t, first, node("a/p", 1))
	require.Equal(t, first, node("a/q", 0))
	p.Endpoints[0].State = model.Unhealthy
	edits(t, s, p)
	s.planDeletePool("a/q").commit()
	p.Endpoints[0].State = model.Active
	edits(t, s, p)
	require.Equal(t, first, node("a/p", 0), "an endpoint that was unhealthy for a while")
	p.Endpoints = p.Endpoints[1:]
	edits(t, s, p)
	require.Len(t, s.nodes, 1, "an endpoint that left all pools has no node")
	p.Endpoints = endpoints(2)
	edits(t, s, p)
	require.NotEqual(t, first, node("a/p", 0))
}

func TestTooManyTimeoutsAreRoundedUp(t *testing.T) {
	s := newState(families[0])
	for i := 1; i < maxTimeouts; i++ {
		s.timeouts[time.Duration(10*i)*time.Second] = true
	}
	require.Equal(t, 20*time.Second, s.timeoutFor(20*time.Second))
	require.Equal(t, 20*time.Second, s.timeoutFor(11*time.Second))
	require.Equal(t, longestTimeout, s.timeoutFor(5*time.Hour))
}

func TestTooManyDifferentLimitsAreRefused(t *testing.T) {
	s := newState(families[0])
	for i := range maxLimits {
		s.limits["connections"][uint32(i+1)] = true
	}
	require.NoError(t, s.checkLimits(map[string]uint32{"connections": maxLimits, "rate": 7}))
	require.ErrorContains(t, s.checkLimits(map[string]uint32{"connections": maxLimits + 1}), "there are already 256 different limits of this kind")
}

func TestANewProcessAdoptsLimits(t *testing.T) {
	l := newLimits()
	for _, chain := range []string{"connections-100", "rate-10", "rate-x", "again-60", "connections-"} {
		l.adopt(chain)
	}
	require.Equal(t, limits{"connections": {100: true}, "rate": {10: true}}, l)
}

func TestAFrontendWithoutPoolAndAPoolWithALongNameAreRefused(t *testing.T) {
	b := &Backend{}
	for _, f := range families {
		b.tables = append(b.tables, newTable(f, newEgress("kubelb")))
	}
	f := model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}, Tenant: "a", Pool: "a/p", TargetPort: 30080}
	_, err := b.planFrontend(f)
	require.ErrorContains(t, err, "pool a/p does not exist")
	_, err = b.planPool(model.Pool{ID: model.PoolID(strings.Repeat("x", maxPoolName+1)), Tenant: "a"})
	require.ErrorContains(t, err, fmt.Sprint(maxPoolName))
}
