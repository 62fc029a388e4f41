package gateway

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/redirect"
	"kubelb.k8c.io/manager/membership"
)

// answering is which addresses this gateway answers for, of those that its dataplane holds. By ARP and NDP the gateways elect one for each
// address; otherwise every gateway announces every address. Without a member it does so whatever becomes of the hub's API.
type answering struct {
	elects    bool
	announcer announce.Announcer
	// setTenant is told whose an address is. It may be nil.
	setTenant func(address netip.Addr, tenant string)
	member    fellows
	permit    *permit
	// for each address that is held: whether it is answered for.
	answers map[netip.Addr]bool
	// fresh are those that have come since it was decided last, by what was known then; waiting is how many are this gateway's and
	// still another one's.
	fresh []netip.Addr
	// decisions counts decisions: one that takes long, as the backend has to be told of it, is given up for a later one.
	decisions uint64
	known     string
	waiting   int
	candidacy candidacy
	// families decides for each family whether this gateway stands for its addresses: it does after its interfaces have carried the family for a while.
	families map[ipam.Family]*candidacy
	view     election.View
	// redirects are by layer2 where one gateway answers for each address, else by bgp. The other one is nil.
	redirects redirect.Strategy
	layer2    *redirect.Layer2
	bgp       *redirect.BGP
	// pending are redirects that the dataplane does not have yet.
	pending redirect.Pending
}

// fellows are the other gateways as this one knows them by their Leases, and knows that they know it.
type fellows interface {
	Peers() (peers []election.Peer, candidates []string, known bool)
	Others() []membership.Other
	Say(membership.Said)
	Told(election.View) bool
}

// SetTenant implements driver.Addresses.
func (a *answering) SetTenant(address netip.Addr, tenant string) {
	if a.setTenant != nil {
		a.setTenant(address, tenant)
	}
}

// Add implements driver.Addresses: the address may be answered for, once that is decided.
func (a *answering) Add(address netip.Addr) {
	if _, known := a.answers[address]; known {
		return
	}
	a.answers[address] = false
	a.fresh = append(a.fresh, address)
}

// Remove implements driver.Addresses: the address is not answered for any more.
func (a *answering) Remove(address netip.Addr) {
	a.announcer.Withdraw(address)
	a.SetTenant(address, "")
	delete(a.answers, address)
	a.redirects.Forget(address)
}

// redirectBy chooses the strategy of redirects. alive returns those of the addresses at which a host answers.
func (a *answering) redirectBy(o Options, alive func([]netip.Addr) []netip.Addr) {
	if o.Elects {
		a.layer2 = redirect.NewLayer2(o.Handover, alive)
		a.redirects = a.layer2
		return
	}
	a.bgp = redirect.NewBGP(o.Name, o.Handover, alive)
	a.redirects = a.bgp
}

// elect brings what is answered for to what this gateway and its peers know now.
func (g *Gateway) elect(ctx context.Context) {
	a := &g.answering
	if !a.elects {
		g.answerForAll(ctx)
		return
	}
	kept, holds := a.permit.keeps(), a.permit.holdsLease()
	if kept && !holds {
		return // what is answered for stays as it is while the API is away, and so does who stands
	}
	peers, candidates, known := a.member.Peers()
	now := time.Now()
	a.view = election.View{Configuration: g.selection.Digest()}
	works := g.served && g.answering.announcer.Able()
	// Without a lease nobody knows who else stands; one that had a lease and lost what it had by it has failed. Beside those that go by
	// another configuration, as another version may, one does not begin to stand: they would let go of what it could not take.
	able := works && kept && (a.candidacy.stood || !election.Strangers(a.view, peers))
	candidate := !g.drain.Draining() && a.candidacy.stands(able, len(candidates) > 0 || !known, a.permit.alone(), now)
	if candidate {
		candidates = append(candidates, g.options.Name)
		slices.Sort(candidates)
	}
	a.view.Candidates = candidates
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		*a.view.WithoutFamily(f) = g.candidatesWithout(f, peers, able, known, now)
	}
	told := a.member.Told(a.view)
	decided := g.decide(ctx, fmt.Sprint(holds, told, a.view, peers), func(address netip.Addr) (string, bool) {
		serves := g.selection.ServingAddress(address)
		name := a.view.Winner(address, serves)
		// One that is to have it and does not know that yet knows nobody to ask, either: who had it before has it still.
		if election.Acts(name, g.options.Name, address, a.view, peers, serves) {
			a.layer2.SetOwner(address, name, g.options.Name, now)
		}
		return name, holds
	}, func(address netip.Addr) bool {
		return told && election.MayClaim(address, a.view, peers, g.selection.ServingAddress(address))
	})
	if !decided {
		return
	}
	g.beginAnew(kept)
	// It says what it acts upon after it has let go of what is not its own by that.
	a.member.Say(membership.Said{View: a.view, Candidate: candidate, Leaving: g.drain.Draining(), Serves: able, Unheard: g.unheardFamilies(), Reached: g.reached(works)})
}

// unheardFamilies are those of whose addresses nobody would hear from this gateway, or not for a while, or it is not known yet.
func (g *Gateway) unheardFamilies() membership.Unheard {
	is := func(f ipam.Family) bool {
		return g.isUnheard(f) || g.answering.elects && !g.answering.families[f].stood || g.routers != nil && !g.routers.hasLooked()
	}
	return membership.Unheard{IPv4: is(ipam.IPv4), IPv6: is(ipam.IPv6)}
}

// candidatesWithout names the candidates that do not stand for addresses of the family: other candidates by their own views, this gateway by its
// interfaces. After a loss this gateway stands for the family again as it does for election: after a while.
func (g *Gateway) candidatesWithout(f ipam.Family, peers []election.Peer, able, known bool, now time.Time) (without []string) {
	a := &g.answering
	others := 0
	for _, p := range peers {
		switch {
		case !slices.Contains(a.view.Candidates, p.Name):
		case slices.Contains(*p.View.WithoutFamily(f), p.Name):
			without = append(without, p.Name)
		default:
			others++
		}
	}
	stands := a.families[f].stands(able && g.answering.announcer.Silent(f) == "", others > 0 || !known, a.permit.alone(), now)
	if !stands && slices.Contains(a.view.Candidates, g.options.Name) {
		without = append(without, g.options.Name)
	}
	slices.Sort(without)
	return without
}

// beginAnew follows when nothing is answered for any more since what the gateway had was not kept. With a lease it may look again.
func (g *Gateway) beginAnew(kept bool) {
	if !kept && g.answering.permit.begin() {
		g.Elect()
	}
}

// answerForAll answers for every address that the pools have this gateway serve, as other gateways do, as long as it may answer at all.
func (g *Gateway) answerForAll(ctx context.Context) {
	a := &g.answering
	kept := a.permit == nil || a.permit.keeps()
	permitted, digest, now := kept && g.MayAnswer(), g.selection.Digest(), time.Now()
	if a.member != nil {
		// Gateways that elect need to know that this one has nothing that they might have.
		a.member.Say(membership.Said{View: election.View{Configuration: digest}, Leaving: g.drain.Draining(), Serves: g.served && permitted && g.answering.announcer.Able(), Unheard: g.unheardFamilies(), Reached: g.reached(g.served)})
		a.bgp.Select(g.selection, now)
	}
	gone := g.drain.Over(now)
	chosen := now.Sub(a.bgp.SelectedSince()) >= drain.Notice
	decided := g.decide(ctx, fmt.Sprint(permitted, gone, digest, chosen), func(address netip.Addr) (string, bool) {
		serving := g.selection.ServingAddress(address)
		// Others get a moment to know that this one may be asked.
		if leaves := serving != nil && !serving(g.options.Name); gone || leaves && (chosen || !a.answers[address]) {
			return "", permitted
		}
		return g.options.Name, permitted
	}, func(netip.Addr) bool { return true })
	if !decided {
		return
	}
	g.beginAnew(kept)
	if g.routers != nil && g.served && permitted {
		g.routers.mayBegin()
	}
}

// reached are the own addresses for connections that this gateway knows, as long as it works.
func (g *Gateway) reached(works bool) []netip.Addr {
	if !works || !slices.Contains(g.driver.Description().Features, dataplane.Handover) {
		return nil
	}
	return g.options.Addresses()
}

// decide lets go of what is not this gateway's, and then claims what is and may be: what holder names it for, if it holds what it needs
// for that. Where nothing has changed of what decides, which known stands for, only new addresses are looked at: one more among thousands
// costs no more than one. It returns false if it was given up, since something else was decided while the backend was called.
func (g *Gateway) decide(ctx context.Context, known string, holder func(netip.Addr) (name string, may bool), may func(netip.Addr) bool) bool {
	a := &g.answering
	a.decisions++
	decision := a.decisions
	look := slices.Values(a.fresh)
	if known != a.known || a.waiting > 0 {
		look = maps.Keys(a.answers)
	}
	a.known, a.fresh, a.waiting = known, nil, 0
	var gone, claimed []netip.Addr
	for address := range look {
		answers, held := a.answers[address]
		name, able := holder(address)
		switch is := held && able && name == g.options.Name; {
		case answers && !is:
			gone = append(gone, address)
		case is && !answers && may(address):
			claimed = append(claimed, address)
		case is && !answers:
			a.waiting++
		}
	}
	if len(gone) > 0 {
		a.announcer.Withdraw(gone...)
	}
	for _, address := range gone {
		a.answers[address] = false
	}
	if a.member != nil {
		g.applyRedirects(ctx)
	}
	if a.decisions != decision {
		a.known = ""
		g.Elect()
		return false
	}
	claimed = slices.DeleteFunc(claimed, func(address netip.Addr) bool {
		waits := g.awaitsRedirect(address)
		if waits {
			a.waiting++
		}
		return waits
	})
	for _, address := range claimed {
		a.answers[address] = true
	}
	if len(claimed) > 0 {
		a.announcer.Announce(claimed...)
	}
	return true
}

// undecided tells whether the election may change by the passing of time alone.
func (a *answering) undecided() bool {
	if !a.elects {
		return false
	}
	for _, c := range a.families {
		if !c.stood && !c.since.IsZero() {
			return true
		}
	}
	return a.waiting > 0 || !a.candidacy.stood
}

// decided tells whether all that is held was looked at, and nothing waits.
func (a *answering) decided() bool { return a.known != "" && a.waiting == 0 && len(a.fresh) == 0 }

// announces tells whether all that is held, and is this gateway's, is announced. Without its Lease a gateway may keep what it has, and take nothing new.
func (g *Gateway) announces() bool {
	return g.served && g.MayAnswer() && g.answering.announcer.Able() && g.answering.decided()
}

// answered is the number of addresses that are answered for.
func (a *answering) answered() (n int32) {
	for _, answers := range a.answers {
		if answers {
			n++
		}
	}
	return n
}

// A gateway that comes back takes its addresses back only after it has been well for a while, and each time that it was not within
// flapping doubles that.
const (
	returnAfter  = 5 * time.Second
	returnAtMost = 5 * time.Minute
	// heeded is how long it takes others that have gone on without a lease to hear of one that has, and to let go: heartbeat.Silence at
	// most, and trusted after that, and some time to spare.
	heeded         = 1500 * time.Millisecond
	flappingWithin = 10 * time.Minute
)

// candidacy decides when a gateway stands for election.
type candidacy struct {
	stood bool
	// able since when; failed when, at last, and how often in a row.
	since, failed time.Time
	failures      int
}

// stands tells whether the gateway is a candidate now. Where it is alone there is nothing to wait for; where no other stands, those that
// are on the segment may answer without a lease, until they have heard this one.
func (c *candidacy) stands(able, others, alone bool, now time.Time) bool {
	if !able {
		if c.stood {
			if now.Sub(c.failed) > flappingWithin {
				c.failures = 0
			}
			c.failures++
			c.failed = now
		}
		c.stood, c.since = false, time.Time{}
		return false
	}
	if c.since.IsZero() {
		c.since = now
	}
	wait := heeded
	switch {
	case others:
		wait = c.wait()
	case alone:
		wait = 0
	}
	c.stood = c.stood || now.Sub(c.since) >= wait
	return c.stood
}

func (c *candidacy) wait() time.Duration {
	return min(returnAfter<<min(c.failures, 10), returnAtMost)
}

// isReplaced tells whether others that stay, and work, may answer for each address that is held. Of a family of which nobody hears from this gateway,
// nobody needs to hear from others.
func (g *Gateway) isReplaced() bool {
	if g.answering.member == nil {
		return false
	}
	var staying []membership.Other
	for _, o := range g.answering.member.Others() {
		if o.Present && !o.Leaving && o.Serves {
			staying = append(staying, o)
		}
	}
	unheard := map[ipam.Family]bool{ipam.IPv4: g.isUnheard(ipam.IPv4), ipam.IPv6: g.isUnheard(ipam.IPv6)}
	for address := range g.answering.answers {
		family, serves := ipam.FamilyOf(address), orAll(g.selection.ServingAddress(address))
		takesOver := func(o membership.Other) bool { return serves(o.Name) && (unheard[family] || !o.Unheard.Of(family)) }
		if !slices.ContainsFunc(staying, takesOver) {
			return false
		}
	}
	return len(staying) > 0
}

// orAll replaces a selector that is nil by one that selects every gateway.
func orAll(serves func(string) bool) func(string) bool {
	if serves == nil {
		return func(string) bool { return true }
	}
	return serves
}
