package nftables

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// trial is one family's table without a kernel: its state, and all of its sets.
type trial struct {
	testing.TB
	*state
	sets map[string]map[string]nft.SetElement
}

func newTrial(t testing.TB, f family) *trial {
	return &trial{t, newState(f), map[string]map[string]nft.SetElement{}}
}

// carry executes a plan as transact and the kernel do: removals before additions, and no element is removed or added twice.
func (k *trial) carry(p *plan, err error) *plan {
	k.Helper()
	require.NoError(k, err)
	b := &batch{vips: map[netip.Addr]int{}, slow: map[netip.Addr]int{}, timeouts: map[time.Duration]bool{}, limits: newLimits(), ranges: rangeChanges{}}
	b.add(p, k.state)
	edits := slices.Concat(b.edits, membership(setVIPs, k.vips, b.vips), membership(setSlowPath, k.slow, b.slow))
	for _, remove := range []bool{true, false} {
		for _, e := range edits {
			if e.remove != remove {
				continue
			}
			if k.sets[e.set] == nil {
				k.sets[e.set] = map[string]nft.SetElement{}
			}
			key := string(e.element.Key)
			if _, there := k.sets[e.set][key]; there != remove {
				require.Failf(k, "the kernel refuses the transaction", "removal: %v, of %s: %x", remove, e.set, key)
			}
			if k.sets[e.set][key] = e.element; remove {
				delete(k.sets[e.set], key)
			}
		}
	}
	p.commit()
	b.commit(k.state)
	return p
}

func (k *trial) pool(id model.PoolID, of ...model.Endpoint) *plan {
	k.Helper()
	return k.carry(k.planPool(model.Pool{ID: id, Tenant: id.Tenant(), Endpoints: of}))
}

func (k *trial) frontend(f model.Frontend) *plan {
	k.Helper()
	return k.carry(k.planFrontend(f))
}

// sizes returns the numbers of elements of all sets that have some.
func (k *trial) sizes() map[string]int {
	out := map[string]int{}
	for set, elements := range k.sets {
		if len(elements) > 0 {
			out[set] = len(elements)
		}
	}
	return out
}

// only returns the element of a set that has one.
func (k *trial) only(set string) nft.SetElement {
	k.Helper()
	require.Len(k, k.sets[set], 1, set)
	for _, e := range k.sets[set] {
		return e
	}
	return nft.SetElement{}
}

func without(sizes, others map[string]int) map[string]int {
	out := map[string]int{}
	for set, n := range sizes {
		if n != others[set] {
			out[set] = n - others[set]
		}
	}
	return out
}

func TestDeletedRecordsLeaveNothing(t *testing.T) {
	for _, f := range families {
		k := newTrial(t, f)
		pools, frontends := served(f)
		for range 2 {
			for _, p := range pools {
				k.carry(k.planPool(p))
			}
			for _, fe := range frontends {
				k.frontend(fe)
			}
			require.Equal(t, map[netip.Addr]int{frontends[0].VIP: len(frontends)}, k.vips)
			require.Equal(t, map[netip.Addr]int{frontends[0].VIP: 1}, k.slow, "one has a limit of connections")
			require.Len(t, k.sets[setVIPs], 1)
			for _, fe := range frontends {
				p := k.carry(k.planDeleteFrontend(fe.FrontendKey), nil)
				require.True(t, p.stale)
				require.Equal(t, []model.FrontendKey{fe.FrontendKey}, p.removed)
			}
			for _, p := range pools {
				k.carry(k.planDeletePool(p.ID), nil)
			}
			require.Empty(t, k.sizes())
			for what, left := range map[string]int{"vips": len(k.vips), "slow": len(k.slow), "ranges": len(k.ranges), "nodes": len(k.nodes), "pools": len(k.pools) + len(k.poolOf), "frontends": len(k.frontends)} {
				require.Zero(t, left, what)
			}
		}
		require.Nil(t, k.planDeleteFrontend(frontends[0].FrontendKey), "a record that does not exist")
		require.Nil(t, k.planDeletePool("a/p"))
	}
}

func TestAFeatureOfAFrontendHasItsElementsOnlyWhileTheFrontendHasIt(t *testing.T) {
	next := netip.MustParseAddr("192.0.2.2")
	for what, c := range map[string]struct {
		change   func(*model.Frontend)
		elements map[string]int
		remains  map[string]int
	}{
		"affinity":         {func(f *model.Frontend) { f.AffinityTimeout = time.Minute }, map[string]int{mapAffinity: 1, mapAffinities: 1}, nil},
		"source ranges":    {func(f *model.Frontend) { *f = restricted(*f, apart(2)...) }, map[string]int{setRestricted: 1, mapRanges: 1}, nil},
		"no source at all": {func(f *model.Frontend) { *f = restricted(*f) }, map[string]int{setRestricted: 1, mapRanges: 1}, nil},
		"transparent":      {func(f *model.Frontend) { f.Forwarding = model.Transparent }, map[string]int{setTransparent: 1}, nil},
		"handover":         {func(f *model.Frontend) { f.Redirect = model.Redirect{Next: next, Limit: 2} }, map[string]int{mapNextGateway: 1, mapRedirects: 1}, nil},
		"connections":      {func(f *model.Frontend) { f.MaxConnections = 5 }, map[string]int{"connection_limits": 1, setSlowPath: 1}, nil},
		"new per second":   {func(f *model.Frontend) { f.MaxNewPerSecond = 5 }, map[string]int{"rate_limits": 1}, nil},
		"direct, which keeps its number for the flows that go on": {func(f *model.Frontend) { f.Forwarding = model.Direct }, map[string]int{mapDirect: 1, egressVIPMap(families[0]): 1}, map[string]int{egressVIPMap(families[0]): 1}},
	} {
		k := newTrial(t, families[0])
		k.pool("t/all", endpoints(2)...)
		plain := labFrontend(model.TCP, netip.MustParseAddr("203.0.113.1"), 80, 30080, "all")
		k.frontend(plain)
		before := k.sizes()
		changed := plain
		c.change(&changed)
		k.frontend(changed)
		require.Equal(t, c.elements, without(k.sizes(), before), what)
		written := map[string]int{}
		for _, e := range k.frontend(changed).edits {
			written[e.set]++
		}
		require.Equal(t, map[string]int{mapPools: 2}, written, "%s: if nothing changes, only the digest is written", what)
		k.frontend(plain)
		remains := without(k.sizes(), before)
		require.True(t, maps.Equal(c.remains, remains), "%s: %v", what, remains)
	}
}

func TestADirectFrontendGoesToItsOwnPort(t *testing.T) {
	k := newTrial(t, families[0])
	k.pool("t/all", endpoints(1)...)
	f := labFrontend(model.TCP, netip.MustParseAddr("203.0.113.1"), 80, 30080, "all")
	for _, c := range []struct {
		mode model.Forwarding
		port uint16
	}{{model.NAT, 30080}, {model.Direct, 80}, {model.Transparent, 30080}} {
		f.Forwarding = c.mode
		k.frontend(f)
		require.Equal(t, c.port, binary.BigEndian.Uint16(k.only(mapPorts).Val), c.mode.String())
	}
}

func TestDirectFrontendsNeverShareANumber(t *testing.T) {
	k := newTrial(t, families[0])
	k.pool("t/all", endpoints(1)...)
	numbers := map[uint32]bool{}
	for port := range uint16(3) {
		f := labFrontend(model.TCP, netip.MustParseAddr("203.0.113.1"), 80+port, 30080, "all")
		f.Forwarding = model.Direct
		k.frontend(f)
		number := k.frontends[f.FrontendKey].direct
		require.Equal(t, uint32(directNumbers), number&directMask)
		require.Zero(t, number&unansweredBit)
		numbers[number] = true
		k.carry(k.planDeleteFrontend(f.FrontendKey), nil)
	}
	require.Len(t, numbers, 3, "a flow of a deleted frontend still has its number")
}

func TestAnAddressIsAVIPFromItsFirstFrontendToItsLast(t *testing.T) {
	k := newTrial(t, families[0])
	k.pool("t/all", endpoints(1)...)
	vip := netip.MustParseAddr("203.0.113.1")
	one, two := labFrontend(model.TCP, vip, 80, 30080, "all"), labFrontend(model.UDP, vip, 80, 30080, "all")
	require.True(t, k.frontend(one).stale, "flows from before it was a VIP are not rewritten")
	require.Equal(t, vip.AsSlice(), k.only(setVIPs).Key)
	require.False(t, k.frontend(two).stale, "the address is a VIP already")
	k.carry(k.planDeleteFrontend(one.FrontendKey), nil)
	require.Equal(t, vip.AsSlice(), k.only(setVIPs).Key)
	k.carry(k.planDeleteFrontend(two.FrontendKey), nil)
	require.Empty(t, k.sets[setVIPs])
}

func TestTwoFrontendsOfOneTransactionMakeOneVIP(t *testing.T) {
	a, b := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	require.Equal(t, []edit{{set: setVIPs, element: nft.SetElement{Key: a.AsSlice()}}}, membership(setVIPs, map[netip.Addr]int{b: 1}, map[netip.Addr]int{a: 2, b: 1}))
	require.Equal(t, []edit{{set: setVIPs, remove: true, element: nft.SetElement{Key: b.AsSlice()}}}, membership(setVIPs, map[netip.Addr]int{a: 2, b: 2}, map[netip.Addr]int{a: -1, b: -2}))
	users := map[netip.Addr]int{a: 1}
	tally(users, map[netip.Addr]int{a: -1, b: 2})
	require.Equal(t, map[netip.Addr]int{b: 2}, users)
}

// Each scan of connection tracking costs time, so a change makes one only if flows may have to end.
func TestAChangeOfAPoolEndsFlowsOnlyIfAnEndpointLosesThem(t *testing.T) {
	three := func(change func(of []model.Endpoint)) []model.Endpoint {
		of := endpoints(3)
		change(of)
		return of
	}
	for what, c := range map[string]struct {
		after []model.Endpoint
		ends  bool
	}{
		"nothing changes":           {endpoints(3), false},
		"an endpoint joins":         {endpoints(4), false},
		"a weight changes":          {three(func(of []model.Endpoint) { of[0].Weight = 7 }), false},
		"an endpoint leaves":        {endpoints(2), true},
		"an endpoint is unhealthy":  {three(func(of []model.Endpoint) { of[1].State = model.Unhealthy }), true},
		"an endpoint drains":        {three(func(of []model.Endpoint) { of[1].State = model.Draining }), true},
		"an endpoint moves":         {three(func(of []model.Endpoint) { of[2].Address = netip.MustParseAddr("198.51.100.99") }), true},
		"the last endpoint is gone": {nil, true},
	} {
		k := newTrial(t, families[0])
		k.pool("t/all", endpoints(3)...)
		require.Equal(t, c.ends, k.pool("t/all", c.after...).stale, what)
	}
}

func TestAChangeOfAFrontendEndsFlowsOnlyIfTheyGoElsewhere(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*model.Frontend)
		ends   bool
	}{
		"nothing":       {func(*model.Frontend) {}, false},
		"affinity":      {func(f *model.Frontend) { f.AffinityTimeout = time.Minute }, false},
		"source ranges": {func(f *model.Frontend) { *f = restricted(*f, apart(1)...) }, false},
		"limits":        {func(f *model.Frontend) { f.MaxConnections = 1 }, false},
		"pool":          {func(f *model.Frontend) { f.Pool = "t/others" }, true},
		"target port":   {func(f *model.Frontend) { f.TargetPort++ }, true},
		"forwarding":    {func(f *model.Frontend) { f.Forwarding = model.Transparent }, true},
		"tenant":        {func(f *model.Frontend) { f.Tenant, f.Pool = "u", "u/all" }, true},
	} {
		k := newTrial(t, families[0])
		for _, id := range []model.PoolID{"t/all", "t/others", "u/all"} {
			k.pool(id, endpoints(2)...)
		}
		f := labFrontend(model.TCP, netip.MustParseAddr("203.0.113.1"), 80, 30080, "all")
		k.frontend(f)
		c.change(&f)
		p := k.frontend(f)
		require.Equal(t, c.ends, p.stale, what)
		require.Equal(t, what == "tenant", slices.Contains(p.removed, f.FrontendKey), "%s: all flows of a former tenant end", what)
	}
}

func TestTheRowsOfAPoolFollowItsSize(t *testing.T) {
	k := newTrial(t, families[0])
	sizes := maglev.Sizes()
	for _, n := range []int{0, 1, 3, 20, 2, 0} {
		k.pool("t/all", endpoints(n)...)
		rows := k.pools["t/all"].size
		require.Len(t, k.sets[mapRows], rows)
		require.Len(t, k.sets[mapEndpoints], n)
		require.Len(t, k.sets[mapMembers], n)
		require.Equal(t, uint32(rows), binary.NativeEndian.Uint32(k.only(mapRegistry).Val))
		if n == 0 {
			require.Zero(t, rows)
			require.Len(t, k.sets[setEmpty], 1)
			require.Empty(t, k.sets[mapFlows])
			continue
		}
		require.Contains(t, sizes, rows)
		require.Empty(t, k.sets[setEmpty])
		require.Equal(t, flowChain(rows), k.only(mapFlows).VerdictData.Chain)
		require.Equal(t, sourceChain(rows), k.only(mapSources).VerdictData.Chain)
		for key, row := range k.sets[mapRows] {
			if _, there := k.sets[mapEndpoints][string(row.Val)]; !there {
				require.Failf(t, "a row leads to no endpoint", "row %x", key)
			}
		}
	}
}

func TestAnEmptyPoolIsInBothTablesAndAnotherInTheOneOfItsFamily(t *testing.T) {
	b := &Backend{}
	for _, f := range families {
		b.tables = append(b.tables, newTable(f, newEgress("kubelb")))
	}
	in := func(of ...model.Endpoint) (names []string) {
		plans, err := b.planPool(model.Pool{ID: "t/all", Tenant: "t", Endpoints: of})
		require.NoError(t, err)
		for _, p := range plans {
			p.commit()
		}
		for _, table := range b.tables {
			if table.state.pools["t/all"] != nil {
				names = append(names, table.layout.name)
			}
		}
		return names
	}
	six := model.Endpoint{ID: "six", Address: netip.MustParseAddr("2001:db8::1"), Weight: 1}
	require.Equal(t, []string{"ip", "ip6"}, in())
	require.Equal(t, []string{"ip"}, in(endpoints(1)...))
	require.Equal(t, []string{"ip6"}, in(six), "the pool has another family now")
	require.Equal(t, []string{"ip", "ip6"}, in())
	require.Len(t, b.planDeletePool("t/all"), 2)
}

func TestElementsThatNoVersionWritesAreUnreadable(t *testing.T) {
	_, frontends := served(families[0])
	one := newTrial(t, families[0])
	one.pool("a/p", endpoints(1)...)
	key := one.frontend(frontends[0]).edits[0].element.Key
	const digest = "0123456789abcdef01234567 "
	four, six := []byte{198, 51, 100, 9}, netip.MustParseAddr("2001:db8::1").AsSlice()
	handle := mark(handleBit + 9)
	for _, c := range []struct {
		set, comment, want string
		key, value         []byte
	}{
		{mapRegistry, "mine", `read registry: comment "mine" names no pool`, mark(9), mark(0)},
		{mapRegistry, digest + "a/p", "or a pool that exists twice", mark(9), mark(0)},
		{mapRegistry, digest + "a/q", "pool a/q: number of 0 bytes", nil, mark(0)},
		{mapRegistry, digest + "a/q", "pool a/q: number 0 is not between 1 and 2147483647", mark(0), mark(0)},
		{mapRegistry, digest + "a/q", "pool a/q: no table has 8 rows", mark(9), mark(8)},
		{mapEndpoints, "99 n", `read endpoints: comment "99 n" does not name a known pool`, handle, four},
		{mapEndpoints, "1 n", `endpoint "n" of pool 1: 20010db8000000000000000000000001 is not an address of the family`, handle, six},
		{mapEndpoints, "1 n", `endpoint "n" of pool 1: 00000000 is not an address of the family`, handle, make([]byte, 4)},
		{mapEndpoints, "1 n", `endpoint "n" of pool 1: number 9 is not between 2147483649 and 4294967294`, mark(9), four},
		{mapEndpoints, "1 " + endpoints(1)[0].ID, `endpoint "198.51.100.1" of pool 1 exists twice`, handle, four},
		{mapEndpoints, "1 n", `read pool a/p: endpoint "n" has node 0`, handle, four},
		{mapNodes, "", "read nodes: handle 2147483657 belongs to no endpoint", handle, mark(1)},
		{mapPools, "", "read pools: frontend key of 3 bytes", key[:3], mark(1)},
		{mapPools, "", "is not of the family", slices.Concat(six, key[4:]), mark(1)},
		{mapPools, "", "frontend TCP 203.0.113.1:80: number of 1 bytes", key, []byte{1}},
		{mapPorts, "", "read ports: element of an unknown frontend TCP 198.51.100.9:80", slices.Concat(four, key[4:]), []byte{0, 80}},
		{mapPorts, "", "read ports: target port of 1 bytes", key, []byte{1}},
		{mapPorts, "", "read frontend TCP 203.0.113.1:80: it has no target port", key, []byte{0, 0}},
		{mapAffinity, "", "read affinity: number 0 is not between 1", key, mark(0)},
		{mapNextGateway, "", "read next: 010203 is not an address of the family", key, []byte{1, 2, 3}},
		{mapNextGateway, "", "it has only one of the next gateway and the number of redirects", key, four},
		{mapDirect, "", "it is direct and has no number", key, mark(1)},
		{mapRanges, "", "read ranges: a verdict has no chain", key, nil},
		{egressVIPMap(families[0]), "nobody", `read vips_ip: comment "nobody" names no frontend`, mark(directNumbers + 1), four},
		{egressVIPMap(families[0]), frontends[0].FrontendKey.String(), "frontend TCP 203.0.113.1:80: number 5 is not between", mark(5), four},
	} {
		k, s := kernelSets{}, newState(families[0])
		k.serve(t, s, []model.Pool{{ID: "a/p", Tenant: "a", Endpoints: endpoints(1)}}, frontends[:1])
		require.NoError(t, newState(families[0]).adopt(k.read))
		k.put(c.set, nft.SetElement{Key: c.key, Val: c.value, Comment: c.comment})
		err := newState(families[0]).adopt(k.read)
		require.ErrorIs(t, err, errUnreadable, c.want)
		require.ErrorContains(t, err, c.want)
		require.True(t, strings.HasPrefix(err.Error(), "read "), "it names what was read: %v", err)
	}
}

// A new process does not know the rows, nor which endpoints get no new flows.
func TestAnAdoptedTableIsServedLikeTheOneThatWasWritten(t *testing.T) {
	for _, f := range families {
		k, s := kernelSets{}, newState(f)
		pools, frontends := served(f)
		k.serve(t, s, pools, frontends)
		next := newState(f)
		require.NoError(t, next.adopt(k.read))
		was, is := model.NewDigests(), model.NewDigests()
		s.digests(was)
		next.digests(is)
		require.Equal(t, was, is, "the manager sends nothing again")
		require.Equal(t, []uint32{s.lastPool, s.lastNode, s.lastNumber, s.lastDirect}, []uint32{next.lastPool, next.lastNode, next.lastNumber, next.lastDirect}, "no number is used twice")
		require.False(t, next.pools["a/p"].complete)
		for key, fe := range next.frontends {
			require.Equal(t, s.frontends[key].forwarding, fe.forwarding, key)
			require.Equal(t, s.frontends[key].direct, fe.direct, key)
			require.Equal(t, s.frontends[key].ranges, fe.ranges, key)
			require.Equal(t, s.frontends[key].limits[connectionLimit], fe.limits[connectionLimit], key)
		}
		require.Equal(t, map[netip.Addr]int{frontends[0].VIP: 1}, next.slow)
		plan, err := next.planPool(pools[0])
		k.carry(t, f, plan, err)
		require.True(t, next.pools["a/p"].complete)
		require.Equal(t, s.pools["a/p"].rows, next.pools["a/p"].rows, "endpoints keep their handles")
	}
}
