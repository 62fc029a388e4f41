package ownership

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
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/announce/announcetest"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/membership"
	"kubelb.k8c.io/manager/selection"
)

func TestAnAddressIsAnsweredForWhileItIsThisGatewaysAndNobodyElseHasIt(t *testing.T) {
	b := announcetest.Board{}
	g := alone(b, true)
	one, two, three := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")
	serve := func(addresses ...netip.Addr) {
		for _, a := range addresses {
			g.Add(a)
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
	g.decide(t.Context(), &plane{}, "view 1", mine(one, two), of(one))
	require.Equal(t, announcetest.Board{one: true}, b)
	require.Equal(t, 1, g.waiting, "two is another one's yet")
	g.decide(t.Context(), &plane{}, "view 1", mine(one, two), of(one, two))
	require.Equal(t, announcetest.Board{one: true, two: true}, b)
	require.Zero(t, g.waiting)
	serve(three)
	asked = 0
	g.decide(t.Context(), &plane{}, "view 1", mine(one, two, three), of(one, two, three))
	require.Equal(t, announcetest.Board{one: true, two: true, three: true}, b)
	require.Equal(t, 2, asked, "whether the new one is mine, and may be claimed")
	g.decide(t.Context(), &plane{}, "view 2", mine(two), of())
	require.Equal(t, announcetest.Board{two: true}, b)
	g.Remove(two)
	require.Empty(t, maps.Collect(maps.All(b)))
	g.decide(t.Context(), &plane{}, "view 3", mine(one, two, three), of(one, two, three))
	require.Equal(t, announcetest.Board{one: true, three: true}, b)
}

// neighbours are fellow gateways, as their Leases say.
type neighbours []membership.Peer

func (neighbours) ActivePeers() ([]election.Peer, []string, bool) { return nil, nil, true }
func (n neighbours) AllPeers() []membership.Peer                  { return n }
func (neighbours) Publish(membership.Published)                   {}
func (neighbours) IsPublished(election.View) bool                 { return true }

// plane is a dataplane that is sent redirects, if it runs.
type plane struct {
	running bool
	calling time.Time
	sent    []map[netip.Addr]bool
}

func (p *plane) Running() bool           { return p.running }
func (p *plane) CallingSince() time.Time { return p.calling }
func (p *plane) SendRedirects(_ context.Context, of map[netip.Addr]bool) {
	p.sent = append(p.sent, maps.Clone(of))
}

// serves is the state of a gateway whose dataplane works.
var serves = State{Served: true}

// hub is what a gateway has of others by the hub's API: its lease, and theirs.
type hub struct {
	world
	right         *Right
	keepWhenAlone bool
	peers         []election.Peer
	candidates    []string
	unread        bool
	said          membership.Published
	others        []membership.Peer
}

func (h *hub) ActivePeers() ([]election.Peer, []string, bool) {
	return h.peers, h.candidates, !h.unread
}
func (h *hub) AllPeers() []membership.Peer    { return h.others }
func (h *hub) Publish(s membership.Published) { h.said = s }
func (h *hub) IsPublished(election.View) bool { return true }

// gateway is one whose dataplane works, and which has no lease yet.
func (h *hub) gateway(a announce.Announcer) *Ownership {
	h.verdict = heartbeat.NoPeer
	h.right = NewRight(RightOptions{Lease: h, Segment: h, KeepWhenAlone: h.keepWhenAlone, Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
	return New(Options{Name: "g", Announcer: a, Elects: true, Peers: h, Right: h.right, Selection: selection.New(), Redirect: time.Minute, Alive: everyHost, Wake: func() {}})
}

func everyHost(addresses []netip.Addr) []netip.Addr { return addresses }

// alone is a gateway that knows nobody else, and answers where it is elected.
func alone(a announce.Announcer, elects bool) *Ownership {
	return New(Options{Name: "g", Announcer: a, Elects: elects, Selection: selection.New(), Alive: everyHost, Wake: func() {}})
}

// elections is as many looks as a gateway takes in a while: the first with a lease only makes it good for what comes.
func elections(t *testing.T, g *Ownership) {
	for range 10 {
		g.Elect(t.Context(), &plane{}, serves)
	}
}

func TestAGatewayThatGetsNoLeaseForAWhileHasNotFailed(t *testing.T) {
	h := &hub{}
	g := h.gateway(announcetest.Board{})
	elections(t, g)
	require.False(t, h.said.Candidate, "nobody knows who else stands")
	h.take()
	h.unread = true
	elections(t, g)
	require.False(t, h.said.Candidate, "nor yet")
	h.unread = false
	elections(t, g)
	require.True(t, h.said.Candidate)
	require.Equal(t, returnAfter, g.candidate.wait())
}

func TestAGatewayThatLosesItsLeaseHasFailedOnce(t *testing.T) {
	h := &hub{candidates: []string{"another"}}
	h.take()
	g := h.gateway(announcetest.Board{})
	elections(t, g)
	require.False(t, h.said.Candidate)
	g.candidate.since = time.Now().Add(-returnAfter)
	elections(t, g)
	require.True(t, h.said.Candidate)

	h.holds, h.verdict = false, heartbeat.PeerReachesAPI
	require.False(t, h.right.decide())
	h.candidates = nil // their leases end as well, as far as this one can see
	elections(t, g)
	require.False(t, h.said.Candidate)
	require.Equal(t, 2*returnAfter, g.candidate.wait())

	h.candidates = []string{"another"}
	h.take()
	elections(t, g)
	require.False(t, h.said.Candidate, "it waits, however long it was away")
	require.Equal(t, 2*returnAfter, g.candidate.wait())
}

func TestBesideCandidatesOfAnotherConfigurationNobodyBeginsToStand(t *testing.T) {
	stranger := func(candidates ...string) []election.Peer {
		return []election.Peer{{Name: "another", View: election.View{Candidates: candidates, Configuration: "another version's"}}}
	}
	h := &hub{peers: stranger("another"), candidates: []string{"another"}}
	h.take()
	g := h.gateway(announcetest.Board{})
	elections(t, g)
	g.candidate.since = time.Now().Add(-returnAfter)
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
	g := h.gateway(announcetest.Board{})
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
		at := map[string]netip.Addr{"a": netip.MustParseAddr("192.0.2.1"), "b": netip.MustParseAddr("192.0.2.2")}
		for name, a := range at {
			h.others = append(h.others, membership.Peer{Name: name, Active: true, RedirectAddresses: []netip.Addr{a}})
		}
		h.take()
		g := h.gateway(announcetest.Board{})
		g.Add(address)
		elections(t, g)
		h.candidates, h.peers = []string{"b"}, []election.Peer{b}
		elections(t, g)
		h.candidates, h.peers = nil, nil
		elections(t, g)
		require.True(t, h.said.Candidate)
		require.Equal(t, at[former], g.Redirect(address).Next)
	}
}

func TestAGatewayStandsAtOnceWhereThereIsNoOther(t *testing.T) {
	var c candidate
	now := time.Now()
	require.False(t, c.isCandidate(false, false, true, now))
	require.True(t, c.isCandidate(true, false, true, now))
	require.True(t, c.isCandidate(true, true, false, now), "that another one comes ends nothing")
}

func TestAGatewayWaitsForThoseThatAnswerWithoutALease(t *testing.T) {
	var c candidate
	now := time.Now()
	require.False(t, c.isCandidate(true, false, false, now))
	require.False(t, c.isCandidate(true, false, false, now.Add(candidateDelay-1)))
	require.True(t, c.isCandidate(true, false, false, now.Add(candidateDelay)))
	require.Greater(t, candidateDelay, heartbeat.Silence+trusted+decideFor)
}

func TestAGatewayThatComesBackStandsAfterItWasWellForAWhileAndLaterEachTime(t *testing.T) {
	var c candidate
	now := time.Now()
	wait := returnAfter
	for range 12 {
		require.False(t, c.isCandidate(true, true, false, now))
		require.False(t, c.isCandidate(true, true, false, now.Add(wait-1)), wait)
		now = now.Add(wait)
		require.True(t, c.isCandidate(true, true, false, now), wait)
		require.False(t, c.isCandidate(false, true, false, now))
		wait = min(2*wait, returnAtMost)
	}
	now = now.Add(flappingWithin + 1)
	require.False(t, c.isCandidate(true, true, false, now))
	now = now.Add(returnAtMost)
	require.True(t, c.isCandidate(true, true, false, now))
	require.False(t, c.isCandidate(false, true, false, now))
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
	b, why := announcetest.Board{}, map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}
	g := h.gateway(announcetest.Mute{Board: b, IsAble: true, Why: why})
	for _, a := range []netip.Addr{four, six} {
		g.Add(a)
	}
	elections(t, g)
	require.Equal(t, announcetest.Board{four: true}, b)
	require.Equal(t, []string{"g"}, h.said.WithoutIPv6, "others are told")
	require.Empty(t, h.said.WithoutIPv4)
	require.False(t, g.Settling(time.Now()), "nothing changes by itself")

	delete(why, ipam.IPv6)
	elections(t, g)
	require.Equal(t, announcetest.Board{four: true, six: true}, b, "there is no other candidate")
	require.Empty(t, h.said.WithoutIPv6)

	// Another candidate would win the IPv4 address, but carries IPv6 alone.
	other := election.Peer{Name: "other", View: election.View{Candidates: both, WithoutIPv4: []string{"other"}}}
	h.candidates, h.peers = []string{"other"}, []election.Peer{other}
	elections(t, g)
	require.Equal(t, announcetest.Board{four: true, six: true}, b)
	require.Equal(t, []string{"other"}, h.said.WithoutIPv4)

	why[ipam.IPv6] = "IPv6 is turned off again"
	g.Elect(t.Context(), &plane{}, serves)
	require.Equal(t, announcetest.Board{four: true}, b, "it lets go at once")
	require.Equal(t, []string{"g"}, h.said.WithoutIPv6)

	delete(why, ipam.IPv6)
	elections(t, g)
	require.Equal(t, announcetest.Board{four: true}, b, "it waits after a loss")
	require.True(t, g.Settling(time.Now()))
	g.families[ipam.IPv6].since = time.Now().Add(-2 * returnAfter)
	elections(t, g)
	require.Equal(t, announcetest.Board{four: true, six: true}, b)
	require.True(t, h.said.Candidate, "it has remained a candidate")
	require.False(t, g.Settling(time.Now()))
}

// A decision that waits for the backend is not carried out after a later one.
func TestADecisionThatWaitedIsGivenUpForALaterOne(t *testing.T) {
	b := announcetest.Board{}
	g := alone(b, true)
	one := netip.MustParseAddr("203.0.113.1")
	g.answers[one] = false
	is := func(netip.Addr) (string, bool) { return "g", true }
	isNot := func(netip.Addr) (string, bool) { return "other", true }
	may := func(netip.Addr) bool {
		// Meanwhile another one is elected.
		g.answers[one] = false
		require.True(t, g.decide(t.Context(), &plane{}, "later", isNot, func(netip.Addr) bool { return true }))
		return true
	}
	require.False(t, g.decide(t.Context(), &plane{}, "earlier", is, may))
	require.Empty(t, b)
}

func TestAnAddressThatComesWhileTheLeaseIsAwayIsNotCalledAnnouncedBeforeItIs(t *testing.T) {
	h, b := &hub{keepWhenAlone: true}, announcetest.Board{}
	h.take()
	g := h.gateway(b)
	before, next := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	g.Add(before)
	elections(t, g)
	require.Equal(t, announcetest.Board{before: true}, b)
	require.True(t, g.Announces(true))

	h.holds = false
	require.True(t, h.right.decide(), "it is alone, and keeps what it has")
	g.Elect(t.Context(), &plane{}, serves)
	require.True(t, g.Announces(true))
	g.Add(next)
	g.Elect(t.Context(), &plane{}, serves)
	require.Equal(t, announcetest.Board{before: true}, b, "it takes nothing new")
	require.False(t, g.Announces(true))

	h.holds = true
	elections(t, g)
	require.Equal(t, announcetest.Board{before: true, next: true}, b)
	require.True(t, g.Announces(true))
}

func TestAGatewayThatMayNotAnswerDoesNotSayThatItAnnounced(t *testing.T) {
	w := &world{verdict: heartbeat.PeerReachesAPI}
	right := w.right(true)
	g := New(Options{Name: "g", Announcer: announcetest.Board{}, Right: right, Selection: selection.New(), Alive: everyHost, Wake: func() {}})
	g.Elect(t.Context(), &plane{}, serves)
	require.True(t, g.Announces(true))
	w.holds = false
	require.False(t, right.decide())
	g.Elect(t.Context(), &plane{}, serves)
	require.False(t, g.Announces(true))
}

func TestADecisionThatWasGivenUpHasAnnouncedNothing(t *testing.T) {
	b := announcetest.Board{}
	g := alone(b, true)
	g.Add(netip.MustParseAddr("203.0.113.1"))
	mine := func(netip.Addr) (string, bool) { return "g", true }
	may := func(netip.Addr) bool { return true }
	require.False(t, g.decide(t.Context(), &plane{}, "view", mine, func(netip.Addr) bool {
		return g.decide(t.Context(), &plane{}, "view", mine, may) // another decision, while the backend was called
	}))
	require.Empty(t, b)
	require.False(t, g.Announces(true))
	require.True(t, g.decide(t.Context(), &plane{}, "view", mine, may))
	require.Len(t, b, 1)
	require.True(t, g.Announces(true))
}

func TestAGatewayThatIsHeardOfOneFamilyReplacesAnotherForThatFamilyOnly(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
	var own announcetest.Mute
	replaced := func(others neighbours, addresses ...netip.Addr) bool {
		g := New(Options{Name: "g", Announcer: own, Peers: others, Selection: selection.New(), Alive: everyHost})
		for _, a := range addresses {
			g.Add(a)
		}
		return g.Replaced()
	}
	only4 := membership.Peer{Name: "four", Active: true, CanTakeOver: true, Silent: membership.SilentFamilies{IPv6: true}}
	only6 := membership.Peer{Name: "six", Active: true, CanTakeOver: true, Silent: membership.SilentFamilies{IPv4: true}}
	require.True(t, replaced(neighbours{only4}, v4))
	require.False(t, replaced(neighbours{only4}, v4, v6), "nobody would hear of the IPv6 address")
	require.False(t, replaced(neighbours{only6}, v4, v6))
	require.True(t, replaced(neighbours{only4, only6}, v4, v6))

	own.Why = map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}
	require.True(t, replaced(neighbours{only4}, v4, v6), "nobody hears of the IPv6 address now, either")
	require.False(t, replaced(neighbours{only6}, v4, v6))
}

func TestAGatewaySaysForWhichFamiliesItCannotTakeOver(t *testing.T) {
	own := announcetest.Mute{Why: map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}}
	require.Equal(t, membership.SilentFamilies{IPv6: true}, alone(own, false).unheard())
	g := alone(own, true)
	require.Equal(t, membership.SilentFamilies{IPv4: true, IPv6: true}, g.unheard(), "it is a candidate for neither yet")
	g.families[ipam.IPv4].was = true
	require.Equal(t, membership.SilentFamilies{IPv6: true}, g.unheard())
}

// moved is a gateway that is to take an address over from another one, which is there.
func moved(t *testing.T, d Dataplane) (*Ownership, announcetest.Board) {
	t.Helper()
	b := announcetest.Board{}
	other := membership.Peer{Name: "other", Active: true, RedirectAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	g := New(Options{Name: "g", Announcer: b, Elects: true, Peers: neighbours{other}, Selection: selection.New(), Redirect: time.Minute, Alive: everyHost, Wake: func() {}})
	address := netip.MustParseAddr("203.0.113.1")
	g.Add(address)
	g.layer2.SetOwner(address, "other", "g", time.Now())
	g.layer2.SetOwner(address, "g", "g", time.Now())
	require.True(t, g.decide(t.Context(), d, "view", mineAlways, always))
	return g, b
}

func mineAlways(netip.Addr) (string, bool) { return "g", true }
func always(netip.Addr) bool               { return true }

func TestTheDataplaneIsSentARedirectBeforeTheAddressIsClaimed(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.1")
	d := &plane{running: true}
	g, b := moved(t, d)
	require.Equal(t, []map[netip.Addr]bool{{address: true}}, d.sent)
	require.Equal(t, model.Handover{Next: netip.MustParseAddr("192.0.2.2"), Asks: 3}, g.Redirect(address))
	require.Equal(t, announcetest.Board{address: true}, b)
	require.Equal(t, 1, g.Redirected())
	require.False(t, g.RedirectsExpire().IsZero())
}

func TestAnAddressIsClaimedOnceTheDataplaneHasItsRedirectOrDoesNotAnswerForAWhile(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.1")
	d := &plane{running: true, calling: time.Now()}
	g, b := moved(t, d)
	require.Empty(t, d.sent, "it works on a call")
	require.Empty(t, b)
	require.True(t, g.Settling(time.Now()), "it looks again")
	d.calling = time.Time{}
	require.True(t, g.decide(t.Context(), d, "view", mineAlways, always))
	require.Len(t, d.sent, 1)
	require.Equal(t, announcetest.Board{address: true}, b)

	_, b = moved(t, &plane{running: true, calling: time.Now().Add(-redirectPatience)})
	require.Equal(t, announcetest.Board{address: true}, b, "its clients cannot wait for that any longer")
}

func TestADataplaneThatDoesNotRunIsSentAllRedirectsWithItsStart(t *testing.T) {
	d := &plane{}
	g, b := moved(t, d)
	require.Len(t, b, 1)
	d.running = true
	require.True(t, g.decide(t.Context(), d, "view", mineAlways, always))
	require.Empty(t, d.sent)
}
