package gateway

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/membership"
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
func (board) Silent(ipam.Family) string { return "" }
func (board) Run(context.Context) error { return nil }

func TestAnAddressIsAnsweredForWhileItIsThisGatewaysAndNobodyElseHasIt(t *testing.T) {
	b := board{}
	g := New(Options{Name: "g", Announcer: b, Elects: true, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	one, two, three := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")
	serve := func(addresses ...netip.Addr) {
		for _, a := range addresses {
			g.answering.Add(a)
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
	g.answering.Remove(two)
	require.Empty(t, maps.Collect(maps.All(b)))
	g.decide(t.Context(), "view 3", mine(one, two, three), of(one, two, three))
	require.Equal(t, board{one: true, three: true}, b)
}

// hub is what a gateway has of others by the hub's API: its lease, and theirs.
type hub struct {
	world
	peers      []election.Peer
	candidates []string
	unread     bool
	said       membership.Said
}

func (h *hub) Peers() ([]election.Peer, []string, bool) { return h.peers, h.candidates, !h.unread }
func (h *hub) Others() []membership.Other               { return nil }
func (h *hub) Say(s membership.Said)                    { h.said = s }
func (h *hub) Told(election.View) bool                  { return true }

// gateway is one whose dataplane works, and which has no lease yet.
func (h *hub) gateway() *Gateway {
	g := New(Options{Name: "g", Announcer: board{}, Elects: true, Handover: time.Minute, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.served = true
	g.answering.member = h
	h.verdict = heartbeat.Alone
	g.answering.permit = &permit{lease: h, segment: h, changed: g.Elect, log: g.log}
	return g
}

// elections is as many looks as a gateway takes in a while: the first with a lease only makes it good for what comes.
func elections(t *testing.T, g *Gateway) {
	for range 10 {
		g.elect(t.Context())
	}
}

func TestAGatewayThatGetsNoLeaseForAWhileHasNotFailed(t *testing.T) {
	h := &hub{}
	g := h.gateway()
	elections(t, g)
	require.False(t, h.said.Candidate, "nobody knows who else stands")
	h.take()
	h.unread = true
	elections(t, g)
	require.False(t, h.said.Candidate, "nor yet")
	h.unread = false
	elections(t, g)
	require.True(t, h.said.Candidate)
	require.Equal(t, returnAfter, g.answering.candidacy.wait())
}

func TestAGatewayThatLosesItsLeaseHasFailedOnce(t *testing.T) {
	h := &hub{candidates: []string{"another"}}
	h.take()
	g := h.gateway()
	elections(t, g)
	require.False(t, h.said.Candidate)
	g.answering.candidacy.since = time.Now().Add(-returnAfter)
	elections(t, g)
	require.True(t, h.said.Candidate)

	h.holds, h.verdict = false, heartbeat.OneReaches
	require.False(t, g.answering.permit.decide())
	h.candidates = nil // their leases end as well, as far as this one can see
	elections(t, g)
	require.False(t, h.said.Candidate)
	require.Equal(t, 2*returnAfter, g.answering.candidacy.wait())

	h.candidates = []string{"another"}
	h.take()
	elections(t, g)
	require.False(t, h.said.Candidate, "it waits, however long it was away")
	require.Equal(t, 2*returnAfter, g.answering.candidacy.wait())
}

func TestBesideCandidatesOfAnotherConfigurationNobodyBeginsToStand(t *testing.T) {
	stranger := func(candidates ...string) []election.Peer {
		return []election.Peer{{Name: "another", View: election.View{Candidates: candidates, Configuration: "another version's"}}}
	}
	h := &hub{peers: stranger("another"), candidates: []string{"another"}}
	h.take()
	g := h.gateway()
	elections(t, g)
	g.answering.candidacy.since = time.Now().Add(-returnAfter)
	elections(t, g)
	require.False(t, h.said.Candidate, "what it won they would let go of, and it could not take that")
	h.peers, h.candidates = stranger(), nil
	elections(t, g)
	require.True(t, h.said.Candidate, "the last one has left")
	h.peers, h.candidates = stranger("another"), []string{"another"}
	elections(t, g)
	require.True(t, h.said.Candidate, "what it has it keeps")
}

func TestWhileTheAPIIsAwayNobodyBeginsToStand(t *testing.T) {
	h := &hub{candidates: []string{"another"}}
	h.take()
	g := h.gateway()
	elections(t, g)
	require.False(t, h.said.Candidate)
	h.holds, h.candidates = false, nil
	elections(t, g)
	h.holds, h.candidates = true, []string{"another"}
	elections(t, g)
	require.False(t, h.said.Candidate)
}

func TestWhoHadAnAddressIsWhoActedUponThat(t *testing.T) {
	acting := func(name string, candidates ...string) election.Peer {
		return election.Peer{Name: name, View: election.View{Candidates: candidates}}
	}
	// An address that goes from a by b, if it stands, to this gateway.
	address := netip.MustParseAddr("203.0.113.1")
	for election.Winner(address, []string{"a", "b", "g"}, nil) != "a" || election.Winner(address, []string{"b", "g"}, nil) != "b" {
		address = address.Next()
	}
	for former, b := range map[string]election.Peer{
		"a": acting("b", "a", "b"), // it has not heard that a is gone
		"b": acting("b", "b"),
	} {
		h := &hub{candidates: []string{"a", "b"}, peers: []election.Peer{acting("a", "a", "b"), acting("b", "a", "b")}}
		h.take()
		g := h.gateway()
		g.answering.Add(address)
		elections(t, g)
		h.candidates, h.peers = []string{"b"}, []election.Peer{b}
		elections(t, g)
		h.candidates, h.peers = nil, nil
		elections(t, g)
		require.True(t, h.said.Candidate)
		require.Equal(t, former, g.answering.layer2.FormerOf(address))
	}
}

func TestAGatewayStandsAtOnceWhereThereIsNoOther(t *testing.T) {
	var c candidacy
	now := time.Now()
	require.False(t, c.stands(false, false, true, now))
	require.True(t, c.stands(true, false, true, now))
	require.True(t, c.stands(true, true, false, now), "that another one comes ends nothing")
}

func TestAGatewayWaitsForThoseThatAnswerWithoutALease(t *testing.T) {
	var c candidacy
	now := time.Now()
	require.False(t, c.stands(true, false, false, now))
	require.False(t, c.stands(true, false, false, now.Add(heeded-1)))
	require.True(t, c.stands(true, false, false, now.Add(heeded)))
	require.Greater(t, heeded, heartbeat.Silence+trusted+decideFor)
}

func TestAGatewayThatComesBackStandsAfterItWasWellForAWhileAndLaterEachTime(t *testing.T) {
	var c candidacy
	now := time.Now()
	wait := returnAfter
	for range 12 {
		require.False(t, c.stands(true, true, false, now))
		require.False(t, c.stands(true, true, false, now.Add(wait-1)), wait)
		now = now.Add(wait)
		require.True(t, c.stands(true, true, false, now), wait)
		require.False(t, c.stands(false, true, false, now))
		wait = min(2*wait, returnAtMost)
	}
	now = now.Add(flappingWithin + 1)
	require.False(t, c.stands(true, true, false, now))
	now = now.Add(returnAtMost)
	require.True(t, c.stands(true, true, false, now))
	require.False(t, c.stands(false, true, false, now))
	require.Equal(t, 2*returnAfter, c.wait(), "what was long ago counts no more")
}

func TestAGatewayAnswersForAddressesOfTheFamiliesThatItsInterfacesCarry(t *testing.T) {
	four, six, both := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1"), []string{"g", "other"}
	for election.Winner(four, both, nil) != "other" {
		four = four.Next()
	}
	for election.Winner(six, both, nil) != "g" {
		six = six.Next()
	}
	h := &hub{}
	h.take()
	g := h.gateway()
	b, why := board{}, map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}
	g.answering.announcer = mute{b, true, why}
	for _, a := range []netip.Addr{four, six} {
		g.answering.Add(a)
	}
	elections(t, g)
	require.Equal(t, board{four: true}, b)
	require.Equal(t, []string{"g"}, h.said.WithoutIPv6, "others are told")
	require.Empty(t, h.said.WithoutIPv4)
	require.False(t, g.answering.undecided(), "nothing changes by itself")

	delete(why, ipam.IPv6)
	elections(t, g)
	require.Equal(t, board{four: true, six: true}, b, "there is no other candidate")
	require.Empty(t, h.said.WithoutIPv6)

	// Another candidate would win the IPv4 address, but carries IPv6 alone.
	other := election.Peer{Name: "other", View: election.View{Candidates: both, WithoutIPv4: []string{"other"}}}
	h.candidates, h.peers = []string{"other"}, []election.Peer{other}
	elections(t, g)
	require.Equal(t, board{four: true, six: true}, b)
	require.Equal(t, []string{"other"}, h.said.WithoutIPv4)

	why[ipam.IPv6] = "IPv6 is turned off again"
	g.elect(t.Context())
	require.Equal(t, board{four: true}, b, "it lets go at once")
	require.Equal(t, []string{"g"}, h.said.WithoutIPv6)

	delete(why, ipam.IPv6)
	elections(t, g)
	require.Equal(t, board{four: true}, b, "it waits after a loss")
	require.True(t, g.answering.undecided())
	g.answering.families[ipam.IPv6].since = time.Now().Add(-2 * returnAfter)
	elections(t, g)
	require.Equal(t, board{four: true, six: true}, b)
	require.True(t, h.said.Candidate, "it has remained a candidate")
	require.False(t, g.answering.undecided())
}

// A decision that waits for the backend is not carried out after a later one.
func TestADecisionThatWaitedIsGivenUpForALaterOne(t *testing.T) {
	b := board{}
	g := New(Options{Name: "g", Announcer: b, Elects: true, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	one := netip.MustParseAddr("203.0.113.1")
	g.answering.answers[one] = false
	is := func(netip.Addr) (string, bool) { return "g", true }
	isNot := func(netip.Addr) (string, bool) { return "other", true }
	may := func(netip.Addr) bool {
		// Meanwhile another one is elected.
		g.answering.answers[one] = false
		require.True(t, g.decide(t.Context(), "later", isNot, func(netip.Addr) bool { return true }))
		return true
	}
	require.False(t, g.decide(t.Context(), "earlier", is, may))
	require.Empty(t, b)
}
