package gateway

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// board notes what is announced.
type board map[netip.Addr]bool

func (b board) Announce(addresses ...netip.Addr) {
	for _, a := range addresses {
		b[a] = true
	}
}

func (b board) Withdraw(addresses ...netip.Addr) {
	for _, a := range addresses {
		delete(b, a)
	}
}

func (board) Able() bool                { return true }
func (board) Run(context.Context) error { return nil }

func TestAnAddressIsAnsweredForWhileItIsThisGatewaysAndNobodyElseHasIt(t *testing.T) {
	b := board{}
	g := New(Options{Name: "g", Announcer: b, Elects: true, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	one, two, three := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")
	frontend := func(a netip.Addr) model.Frontend {
		return model.Frontend{FrontendKey: model.FrontendKey{VIP: a, Protocol: model.TCP, Port: 80}}
	}
	serve := func(addresses ...netip.Addr) {
		for _, a := range addresses {
			g.announce(model.Delta{UpsertFrontends: []model.Frontend{frontend(a)}})
		}
	}
	asked := 0
	of := func(addresses ...netip.Addr) func(netip.Addr) bool {
		set := map[netip.Addr]bool{}
		for _, a := range addresses {
			set[a] = true
		}
		return func(a netip.Addr) bool {
			asked++
			return set[a]
		}
	}
	mine := func(addresses ...netip.Addr) func(netip.Addr) (string, bool) {
		is := of(addresses...)
		return func(a netip.Addr) (string, bool) {
			if is(a) {
				return "g", true
			}
			return "other", true
		}
	}
	serve(one, two)
	g.decide(t.Context(), "view 1", mine(one, two), of(one))
	require.Equal(t, board{one: true}, b)
	require.Equal(t, 1, g.answering.waiting, "two is another one's yet")
	g.decide(t.Context(), "view 1", mine(one, two), of(one, two))
	require.Equal(t, board{one: true, two: true}, b)
	require.Zero(t, g.answering.waiting)
	serve(three)
	asked = 0
	g.decide(t.Context(), "view 1", mine(one, two, three), of(one, two, three))
	require.Equal(t, board{one: true, two: true, three: true}, b)
	require.Equal(t, 2, asked, "whether the new one is mine, and may be claimed")
	g.decide(t.Context(), "view 2", mine(two), of())
	require.Equal(t, board{two: true}, b)
	g.withdraw(model.Delta{DeleteFrontends: []model.FrontendKey{frontend(two).FrontendKey}})
	require.Empty(t, maps.Collect(maps.All(b)))
	g.decide(t.Context(), "view 3", mine(one, two, three), of(one, two, three))
	require.Equal(t, board{one: true, three: true}, b)
}

func TestAGatewayStandsAtOnceWhereThereIsNoOther(t *testing.T) {
	var c candidacy
	now := time.Now()
	require.False(t, c.stands(false, false, now))
	require.True(t, c.stands(true, false, now))
	require.True(t, c.stands(true, true, now), "that another one comes ends nothing")
}

func TestAGatewayThatComesBackStandsAfterItWasWellForAWhileAndLaterEachTime(t *testing.T) {
	var c candidacy
	now := time.Now()
	wait := returnAfter
	for range 12 {
		require.False(t, c.stands(true, true, now))
		require.False(t, c.stands(true, true, now.Add(wait-1)), wait)
		now = now.Add(wait)
		require.True(t, c.stands(true, true, now), wait)
		require.False(t, c.stands(false, true, now))
		wait = min(2*wait, returnAtMost)
	}
	now = now.Add(flappingWithin + 1)
	require.False(t, c.stands(true, true, now))
	now = now.Add(returnAtMost)
	require.True(t, c.stands(true, true, now))
	require.False(t, c.stands(false, true, now))
	require.Equal(t, 2*returnAfter, c.wait(), "what was long ago counts no more")
}

func TestAFormerGatewayIsAskedForAWhileAsLongAsItWorks(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
	at4, at6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:c::2")
	now := time.Now()
	h := handover{limit: time.Minute, holders: map[netip.Addr]string{}, formers: map[netip.Addr]former{}, lost: map[netip.Addr]loss{}}
	works, failed := []netip.Addr{at6, at4}, false
	reached := func(string) ([]netip.Addr, bool) { return works, failed }
	look := func() []netip.Addr {
		changed := h.look(reached, now)
		slices.SortFunc(changed, netip.Addr.Compare)
		return changed
	}
	h.take(v4, "me", "me", now)
	h.take(v6, "other", "me", now)
	require.Empty(t, look(), "nobody has had the one before, and the other is not mine")
	h.take(v4, "other", "me", now)
	for _, a := range []netip.Addr{v4, v6} {
		h.take(a, "me", "me", now)
		h.take(a, "me", "me", now.Add(time.Second))
	}
	require.Equal(t, []netip.Addr{v4, v6}, look())
	require.Equal(t, at4, h.formers[v4].at)
	require.Equal(t, at6, h.formers[v6].at)
	require.Empty(t, look(), "nothing new")
	require.Equal(t, now.Add(time.Minute), h.ends())
	works = nil
	require.Equal(t, []netip.Addr{v4, v6}, look(), "it works no more")
	works = []netip.Addr{at4}
	require.Equal(t, []netip.Addr{v4}, look(), "it does again, in one family")
	now = now.Add(time.Minute)
	require.Equal(t, []netip.Addr{v4}, look(), "long enough")
	require.Empty(t, h.formers)
	require.Zero(t, h.ends())
	h.take(v4, "third", "me", now)
	h.take(v4, "me", "me", now)
	require.Equal(t, []netip.Addr{v4}, look())
	h.take(v4, "other", "me", now)
	require.Equal(t, []netip.Addr{v4}, look(), "only who answers asks")
	require.Empty(t, h.formers)
	h.take(v4, "me", "me", now)
	require.Equal(t, []netip.Addr{v4}, look(), "who had it from here leaves in good order: it asks nobody any more")
	failed = true
	require.Equal(t, []netip.Addr{v4}, look(), "it has failed, and would send back what it does not know")
	h.take(v4, "fourth", "me", now)
	look()
	now = now.Add(time.Minute)
	h.take(v4, "me", "me", now)
	require.Equal(t, []netip.Addr{v4}, look(), "one that fails long after it had the address from here")
	h.end(now)
	require.Equal(t, []netip.Addr{v4}, look())
	require.Empty(t, h.formers)
}

func TestWhereAllAnswerForAllTheOneThatLeavesIsAsked(t *testing.T) {
	one, two := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	now := time.Now()
	h := handover{limit: time.Minute, holders: map[netip.Addr]string{}, formers: map[netip.Addr]former{}, left: map[string]time.Time{}}
	reached := func(name string) ([]netip.Addr, bool) {
		return map[string][]netip.Addr{"a": {netip.MustParseAddr("192.0.2.1")}, "b": {netip.MustParseAddr("192.0.2.2")}}[name], false
	}
	all := map[netip.Addr]bool{one: true}
	h.askWhoLeaves([]string{"a", "b"}, all, nil, now)
	require.Equal(t, []netip.Addr{one}, h.look(reached, now))
	require.Equal(t, "a", h.formers[one].name)
	all[two] = true
	h.askWhoLeaves([]string{"a", "b"}, all, []netip.Addr{two}, now)
	require.Equal(t, []netip.Addr{two}, h.look(reached, now))
	h.askWhoLeaves([]string{"b"}, all, nil, now)
	require.Len(t, h.look(reached, now), 2, "the first is back")
	require.Equal(t, "b", h.formers[two].name)
	h.askWhoLeaves(nil, all, nil, now)
	require.Len(t, h.look(reached, now), 2)
	require.Empty(t, h.formers)
}

func TestWhereAPoolChoosesOthersTheOneThatHasServedAnAddressIsAsked(t *testing.T) {
	address, now := netip.MustParseAddr("203.0.113.1"), time.Now()
	h := handover{limit: time.Minute, formers: map[netip.Addr]former{}, left: map[string]time.Time{}}
	all := everyoneUnless(nil)
	only := func(names ...string) func(string) bool {
		return func(name string) bool { return slices.Contains(names, name) }
	}
	reached := func(string) ([]netip.Addr, bool) { return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, false }
	h.reselect(address, "me", []string{"a", "b"}, all, only("me", "b"), now)
	require.Equal(t, []netip.Addr{address}, h.look(reached, now))
	require.Equal(t, "a", h.formers[address].name)
	h.askWhoLeaves(nil, map[netip.Addr]bool{address: true}, []netip.Addr{address}, now)
	require.Empty(t, h.look(reached, now), "nobody else leaves")
	h.reselect(address, "me", []string{"a", "b"}, only("me", "b"), all, now)
	require.Equal(t, []netip.Addr{address}, h.look(reached, now))
	require.Empty(t, h.formers, "it serves again")
	h.reselect(address, "me", []string{"a", "b"}, only("a"), only("me"), now)
	h.look(reached, now)
	h.reselect(address, "me", []string{"a", "b"}, only("me"), only("b"), now)
	h.look(reached, now)
	require.Empty(t, h.formers, "only who serves asks")
	h.reselect(address, "me", []string{"a", "b"}, only("a"), only("b"), now)
	require.Empty(t, h.formers)
}
