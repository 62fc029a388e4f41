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

func TestAnAddressIsAnsweredForWhileItIsThisGatewaysAndNoPeerHasIt(t *testing.T) {
	b := announcetest.Recorder{}
	g := alone(b, true)
	one, two, three := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")
	serve := func(addresses ...netip.Addr) {
		for _, a := range addresses {
			g.Add(a)
		}
	}
	calls := 0
	of := func(addresses ...netip.Addr) func(netip.Addr) bool {
		set := map[netip.Addr]bool{}
		for _, a := range addresses {
			set[a] = true
		}
		return func(a netip.Addr) bool {
			calls++
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
	g.decide(t.Context(), &recordingDataplane{}, "view 1", mine(one, two), of(one))
	require.Equal(t, announcetest.Recorder{one: true}, b)
	require.Equal(t, 1, g.waiting, "address two may not be claimed yet")
	g.decide(t.Context(), &recordingDataplane{}, "view 1", mine(one, two), of(one, two))
	require.Equal(t, announcetest.Recorder{one: true, two: true}, b)
	require.Zero(t, g.waiting)
	serve(three)
	calls = 0
	g.decide(t.Context(), &recordingDataplane{}, "view 1", mine(one, two, three), of(one, two, three))
	require.Equal(t, announcetest.Recorder{one: true, two: true, three: true}, b)
	require.Equal(t, 2, calls, "only the new address is examined")
	g.decide(t.Context(), &recordingDataplane{}, "view 2", mine(two), of())
	require.Equal(t, announcetest.Recorder{two: true}, b)
	g.Remove(two)
	require.Empty(t, maps.Collect(maps.All(b)))
	g.decide(t.Context(), &recordingDataplane{}, "view 3", mine(one, two, three), of(one, two, three))
	require.Equal(t, announcetest.Recorder{one: true, three: true}, b)
}

// neighbours are peers as their Leases show them.
type neighbours []membership.Peer

func (neighbours) ActivePeers() ([]election.Peer, []string, bool) { return nil, nil, true }
func (n neighbours) AllPeers() []membership.Peer                  { return n }
func (neighbours) Publish(membership.Published)                   {}
func (neighbours) IsPublished(election.View) bool                 { return true }

// recordingDataplane is a dataplane that records redirects.
type recordingDataplane struct {
	running bool
	calling time.Time
	sent    []map[netip.Addr]bool
}

func (p *recordingDataplane) Running() bool           { return p.running }
func (p *recordingDataplane) CallingSince() time.Time { return p.calling }
func (p *recordingDataplane) SendRedirects(_ context.Context, of map[netip.Addr]bool) {
	p.sent = append(p.sent, maps.Clone(of))
}

// served is the state of a gateway whose dataplane works.
var served = State{Served: true}

// hub is what a gateway reads from the hub's API: its own Lease, and its peers.
type hub struct {
	rightInput
	right         *Right
	keepWhenAlone bool
	peers         []election.Peer
	candidates    []string
	unread        bool
	published     membership.Published
	allPeers      []membership.Peer
}

func (h *hub) ActivePeers() ([]election.Peer, []string, bool) {
	return h.peers, h.candidates, !h.unread
}
func (h *hub) AllPeers() []membership.Peer    { return h.allPeers }
func (h *hub) Publish(s membership.Published) { h.published = s }
func (h *hub) IsPublished(election.View) bool { return true }

// gateway returns a gateway whose dataplane works, and which has no Lease yet.
func (h *hub) gateway(a announce.Announcer) *Ownership {
	h.peerState = heartbeat.NoPeer
	h.right = NewRight(RightOptions{Lease: h, Segment: h, KeepWhenAlone: h.keepWhenAlone, Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
	return New(Options{Name: "g", Announcer: a, Elects: true, Peers: h, Right: h.right, Selection: selection.New(), RedirectDuration: time.Minute, Alive: everyHost, Wake: func() {}})
}

func everyHost(addresses []netip.Addr) []netip.Addr { return addresses }

// alone returns a gateway without peers.
func alone(a announce.Announcer, elects bool) *Ownership {
	return New(Options{Name: "g", Announcer: a, Elects: elects, Selection: selection.New(), Alive: everyHost, Wake: func() {}})
}

// elections runs several elections: the first one with a Lease only acquires the right to answer.
func elections(t *testing.T, g *Ownership) {
	for range 10 {
		g.Elect(t.Context(), &recordingDataplane{}, served)
	}
}

func TestAGatewayThatGetsNoLeaseForAWhileHasNotFailed(t *testing.T) {
	h := &hub{}
	g := h.gateway(announcetest.Recorder{})
	elections(t, g)
	require.False(t, h.published.Candidate, "the other candidates are not known without a Lease")
	h.acquireLease()
	h.unread = true
	elections(t, g)
	require.False(t, h.published.Candidate, "the peers' Leases were not read yet")
	h.unread = false
	elections(t, g)
	require.True(t, h.published.Candidate)
	require.Equal(t, minReturnDelay, g.candidate.returnDelay())
}

func TestAGatewayThatLosesItsLeaseHasFailedOnce(t *testing.T) {
	h := &hub{candidates: []string{"another"}}
	h.acquireLease()
	g := h.gateway(announcetest.Recorder{})
	elections(t, g)
	require.False(t, h.published.Candidate)
	g.candidate.ableSince = time.Now().Add(-minReturnDelay)
	elections(t, g)
	require.True(t, h.published.Candidate)

	h.holds, h.peerState = false, heartbeat.PeerReachesAPI
	require.False(t, h.right.decide())
	h.candidates = nil // the peers' Leases expire, too
	elections(t, g)
	require.False(t, h.published.Candidate)
	require.Equal(t, 2*minReturnDelay, g.candidate.returnDelay())

	h.candidates = []string{"another"}
	h.acquireLease()
	elections(t, g)
	require.False(t, h.published.Candidate, "it waits, however long it had no Lease")
	require.Equal(t, 2*minReturnDelay, g.candidate.returnDelay())
}

func TestAmongCandidatesOfAnotherConfigurationAGatewayDoesNotBecomeACandidate(t *testing.T) {
	foreignPeers := func(candidates ...string) []election.Peer {
		return []election.Peer{{Name: "another", View: election.View{Candidates: candidates, Configuration: "another version's"}}}
	}
	h := &hub{peers: foreignPeers("another"), candidates: []string{"another"}}
	h.acquireLease()
	g := h.gateway(announcetest.Recorder{})
	elections(t, g)
	g.candidate.ableSince = time.Now().Add(-minReturnDelay)
	elections(t, g)
	require.False(t, h.published.Candidate, "the others would withdraw addresses that it could not take")
	h.peers, h.candidates = foreignPeers(), nil
	elections(t, g)
	require.True(t, h.published.Candidate, "no candidate has another configuration any more")
	h.peers, h.candidates = foreignPeers("another"), []string{"another"}
	elections(t, g)
	require.True(t, h.published.Candidate, "it stays a candidate")
}

func TestWithoutTheAPIAGatewayDoesNotBecomeACandidate(t *testing.T) {
	h := &hub{candidates: []string{"another"}}
	h.acquireLease()
	g := h.gateway(announcetest.Recorder{})
	elections(t, g)
	require.False(t, h.published.Candidate)
	h.holds, h.candidates = false, nil
	elections(t, g)
	h.holds, h.candidates = true, []string{"another"}
	elections(t, g)
	require.False(t, h.published.Candidate)
}

func TestTheFormerOwnerOfAnAddressIsTheGatewayThatActedAsItsOwner(t *testing.T) {
	acting := func(name string, candidates ...string) election.Peer {
		return election.Peer{Name: name, View: election.View{Candidates: candidates}}
	}
	// An address that goes from a to this gateway, by b if b is a candidate.
	address := netip.MustParseAddr("203.0.113.1")
	for election.Winner(address, []string{"a", "b", "g"}, nil) != "a" || election.Winner(address, []string{"b", "g"}, nil) != "b" {
		address = address.Next()
	}
	for former, b := range map[string]election.Peer{
		"a": acting("b", "a", "b"), // b does not know yet that a is gone
		"b": acting("b", "b"),
	} {
		h := &hub{candidates: []string{"a", "b"}, peers: []election.Peer{acting("a", "a", "b"), acting("b", "a", "b")}}
		at := map[string]netip.Addr{"a": netip.MustParseAddr("192.0.2.1"), "b": netip.MustParseAddr("192.0.2.2")}
		for name, a := range at {
			h.allPeers = append(h.allPeers, membership.Peer{Name: name, Active: true, RedirectAddresses: []netip.Addr{a}})
		}
		h.acquireLease()
		g := h.gateway(announcetest.Recorder{})
		g.Add(address)
		elections(t, g)
		h.candidates, h.peers = []string{"b"}, []election.Peer{b}
		elections(t, g)
		h.candidates, h.peers = nil, nil
		elections(t, g)
		require.True(t, h.published.Candidate)
		require.Equal(t, at[former], g.Redirect(address).Next)
	}
}

func TestAGatewayWithoutPeersIsACandidateAtOnce(t *testing.T) {
	var c candidate
	now := time.Now()
	require.False(t, c.update(false, false, true, now))
	require.True(t, c.update(true, false, true, now))
	require.True(t, c.update(true, true, false, now), "a new candidate changes nothing")
}

func TestAGatewayWaitsForPeersThatAnswerWithoutALease(t *testing.T) {
	var c candidate
	now := time.Now()
	require.False(t, c.update(true, false, false, now))
	require.False(t, c.update(true, false, false, now.Add(candidateDelay-1)))
	require.True(t, c.update(true, false, false, now.Add(candidateDelay)))
	require.Greater(t, candidateDelay, heartbeat.Silence+trustPeriod+decisionLifetime)
}

func TestAGatewayThatComesBackWaitsLongerAfterEachFailure(t *testing.T) {
	var c candidate
	now := time.Now()
	wait := minReturnDelay
	for range 12 {
		require.False(t, c.update(true, true, false, now))
		require.False(t, c.update(true, true, false, now.Add(wait-1)), wait)
		now = now.Add(wait)
		require.True(t, c.update(true, true, false, now), wait)
		require.False(t, c.update(false, true, false, now))
		wait = min(2*wait, maxReturnDelay)
	}
	now = now.Add(flapWindow + 1)
	require.False(t, c.update(true, true, false, now))
	now = now.Add(maxReturnDelay)
	require.True(t, c.update(true, true, false, now))
	require.False(t, c.update(false, true, false, now))
	require.Equal(t, 2*minReturnDelay, c.returnDelay(), "an old failure does not count any more")
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
	h.acquireLease()
	b, why := announcetest.Recorder{}, map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}
	g := h.gateway(announcetest.SilentRecorder{Recorder: b, IsWorking: true, Reasons: why})
	for _, a := range []netip.Addr{four, six} {
		g.Add(a)
	}
	elections(t, g)
	require.Equal(t, announcetest.Recorder{four: true}, b)
	require.Equal(t, []string{"g"}, h.published.WithoutIPv6, "its peers know it")
	require.Empty(t, h.published.WithoutIPv4)
	require.False(t, g.IsSettling(time.Now()), "no decision changes by the passing of time")

	delete(why, ipam.IPv6)
	elections(t, g)
	require.Equal(t, announcetest.Recorder{four: true, six: true}, b, "there is no other candidate")
	require.Empty(t, h.published.WithoutIPv6)

	// Another candidate would win the IPv4 address, but carries IPv6 alone.
	other := election.Peer{Name: "other", View: election.View{Candidates: both, WithoutIPv4: []string{"other"}}}
	h.candidates, h.peers = []string{"other"}, []election.Peer{other}
	elections(t, g)
	require.Equal(t, announcetest.Recorder{four: true, six: true}, b)
	require.Equal(t, []string{"other"}, h.published.WithoutIPv4)

	why[ipam.IPv6] = "IPv6 is turned off again"
	g.Elect(t.Context(), &recordingDataplane{}, served)
	require.Equal(t, announcetest.Recorder{four: true}, b, "it withdraws the address at once")
	require.Equal(t, []string{"g"}, h.published.WithoutIPv6)

	delete(why, ipam.IPv6)
	elections(t, g)
	require.Equal(t, announcetest.Recorder{four: true}, b, "it waits after a loss")
	require.True(t, g.IsSettling(time.Now()))
	g.families[ipam.IPv6].ableSince = time.Now().Add(-2 * minReturnDelay)
	elections(t, g)
	require.Equal(t, announcetest.Recorder{four: true, six: true}, b)
	require.True(t, h.published.Candidate, "it has stayed a candidate")
	require.False(t, g.IsSettling(time.Now()))
}

// A decision that waits for the plugin is not carried out after a later one.
func TestADecisionThatWaitedIsCancelledByALaterOne(t *testing.T) {
	b := announcetest.Recorder{}
	g := alone(b, true)
	one := netip.MustParseAddr("203.0.113.1")
	g.answers[one] = false
	is := func(netip.Addr) (string, bool) { return "g", true }
	isNot := func(netip.Addr) (string, bool) { return "other", true }
	may := func(netip.Addr) bool {
		// Meanwhile another gateway is elected.
		g.answers[one] = false
		require.True(t, g.decide(t.Context(), &recordingDataplane{}, "later", isNot, func(netip.Addr) bool { return true }))
		return true
	}
	require.False(t, g.decide(t.Context(), &recordingDataplane{}, "earlier", is, may))
	require.Empty(t, b)
}

func TestAnAddressThatIsAddedWithoutALeaseIsNotReportedAsAnnounced(t *testing.T) {
	h, b := &hub{keepWhenAlone: true}, announcetest.Recorder{}
	h.acquireLease()
	g := h.gateway(b)
	before, next := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	g.Add(before)
	elections(t, g)
	require.Equal(t, announcetest.Recorder{before: true}, b)
	require.True(t, g.AllAnnounced(true))

	h.holds = false
	require.True(t, h.right.decide(), "it is alone, and keeps its addresses")
	g.Elect(t.Context(), &recordingDataplane{}, served)
	require.True(t, g.AllAnnounced(true))
	g.Add(next)
	g.Elect(t.Context(), &recordingDataplane{}, served)
	require.Equal(t, announcetest.Recorder{before: true}, b, "it takes no new address")
	require.False(t, g.AllAnnounced(true))

	h.holds = true
	elections(t, g)
	require.Equal(t, announcetest.Recorder{before: true, next: true}, b)
	require.True(t, g.AllAnnounced(true))
}

func TestAGatewayThatMayNotAnswerDoesNotReportAnnouncements(t *testing.T) {
	w := &rightInput{peerState: heartbeat.PeerReachesAPI}
	right := w.right(true)
	g := New(Options{Name: "g", Announcer: announcetest.Recorder{}, Right: right, Selection: selection.New(), Alive: everyHost, Wake: func() {}})
	g.Elect(t.Context(), &recordingDataplane{}, served)
	require.True(t, g.AllAnnounced(true))
	w.holds = false
	require.False(t, right.decide())
	g.Elect(t.Context(), &recordingDataplane{}, served)
	require.False(t, g.AllAnnounced(true))
}

func TestACancelledDecisionAnnouncesNothing(t *testing.T) {
	b := announcetest.Recorder{}
	g := alone(b, true)
	g.Add(netip.MustParseAddr("203.0.113.1"))
	mine := func(netip.Addr) (string, bool) { return "g", true }
	may := func(netip.Addr) bool { return true }
	require.False(t, g.decide(t.Context(), &recordingDataplane{}, "view", mine, func(netip.Addr) bool {
		return g.decide(t.Context(), &recordingDataplane{}, "view", mine, may) // another decision during the call of the plugin
	}))
	require.Empty(t, b)
	require.False(t, g.AllAnnounced(true))
	require.True(t, g.decide(t.Context(), &recordingDataplane{}, "view", mine, may))
	require.Len(t, b, 1)
	require.True(t, g.AllAnnounced(true))
}

func TestAGatewayThatAnnouncesOneFamilyReplacesAnotherForThatFamilyOnly(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
	var own announcetest.SilentRecorder
	replaced := func(others neighbours, addresses ...netip.Addr) bool {
		g := New(Options{Name: "g", Announcer: own, Peers: others, Selection: selection.New(), Alive: everyHost})
		for _, a := range addresses {
			g.Add(a)
		}
		return g.IsReplaced()
	}
	only4 := membership.Peer{Name: "four", Active: true, CanTakeOver: true, Silent: membership.SilentFamilies{IPv6: true}}
	only6 := membership.Peer{Name: "six", Active: true, CanTakeOver: true, Silent: membership.SilentFamilies{IPv4: true}}
	require.True(t, replaced(neighbours{only4}, v4))
	require.False(t, replaced(neighbours{only4}, v4, v6), "nobody would announce the IPv6 address")
	require.False(t, replaced(neighbours{only6}, v4, v6))
	require.True(t, replaced(neighbours{only4, only6}, v4, v6))

	own.Reasons = map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}
	require.True(t, replaced(neighbours{only4}, v4, v6), "the IPv6 address is not announced now, either")
	require.False(t, replaced(neighbours{only6}, v4, v6))
}

func TestAGatewayPublishesTheFamiliesThatItCannotTakeOver(t *testing.T) {
	own := announcetest.SilentRecorder{Reasons: map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}}
	require.Equal(t, membership.SilentFamilies{IPv6: true}, alone(own, false).silentFamilies())
	g := alone(own, true)
	require.Equal(t, membership.SilentFamilies{IPv4: true, IPv6: true}, g.silentFamilies(), "it is a candidate for neither family yet")
	g.families[ipam.IPv4].active = true
	require.Equal(t, membership.SilentFamilies{IPv6: true}, g.silentFamilies())
}

// moved returns a gateway that is to take an address over from a peer that works.
func moved(t *testing.T, d Dataplane) (*Ownership, announcetest.Recorder) {
	t.Helper()
	b := announcetest.Recorder{}
	other := membership.Peer{Name: "other", Active: true, RedirectAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	g := New(Options{Name: "g", Announcer: b, Elects: true, Peers: neighbours{other}, Selection: selection.New(), RedirectDuration: time.Minute, Alive: everyHost, Wake: func() {}})
	address := netip.MustParseAddr("203.0.113.1")
	g.Add(address)
	g.layer2.SetOwner(address, "other", "g", time.Now())
	g.layer2.SetOwner(address, "g", "g", time.Now())
	require.True(t, g.decide(t.Context(), d, "view", mineAlways, always))
	return g, b
}

func mineAlways(netip.Addr) (string, bool) { return "g", true }
func always(netip.Addr) bool               { return true }

func TestTheDataplaneGetsARedirectBeforeTheAddressIsClaimed(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.1")
	d := &recordingDataplane{running: true}
	g, b := moved(t, d)
	require.Equal(t, []map[netip.Addr]bool{{address: true}}, d.sent)
	require.Equal(t, model.Redirect{Next: netip.MustParseAddr("192.0.2.2"), Limit: 3}, g.Redirect(address))
	require.Equal(t, announcetest.Recorder{address: true}, b)
	require.Equal(t, 1, g.RedirectedCount())
	require.False(t, g.NextRedirectExpiry().IsZero())
}

func TestAnAddressIsClaimedOnceTheDataplaneHasItsRedirectOrIsSilentForAWhile(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.1")
	d := &recordingDataplane{running: true, calling: time.Now()}
	g, b := moved(t, d)
	require.Empty(t, d.sent, "the plugin works on a call")
	require.Empty(t, b)
	require.True(t, g.IsSettling(time.Now()), "it decides again soon")
	d.calling = time.Time{}
	require.True(t, g.decide(t.Context(), d, "view", mineAlways, always))
	require.Len(t, d.sent, 1)
	require.Equal(t, announcetest.Recorder{address: true}, b)

	_, b = moved(t, &recordingDataplane{running: true, calling: time.Now().Add(-redirectTimeout)})
	require.Equal(t, announcetest.Recorder{address: true}, b, "clients do not wait any longer")
}

func TestADataplaneThatStartsGetsAllRedirects(t *testing.T) {
	d := &recordingDataplane{}
	g, b := moved(t, d)
	require.Len(t, b, 1)
	d.running = true
	require.True(t, g.decide(t.Context(), d, "view", mineAlways, always))
	require.Empty(t, d.sent)
}
