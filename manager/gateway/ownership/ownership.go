// Package ownership decides for which addresses of its dataplane this gateway answers: whether it may answer at all, which gateway is elected for
// each address, and to which gateway packets of unknown connections are redirected meanwhile.
package ownership

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/redirect"
	"kubelb.k8c.io/manager/membership"
	"kubelb.k8c.io/manager/selection"
)

// Peers are the other gateways as their Leases show them.
type Peers interface {
	ActivePeers() (peers []election.Peer, candidates []string, known bool)
	AllPeers() []membership.Peer
	Publish(membership.Published)
	IsPublished(election.View) bool
}

// Routers are the BGP sessions with routers.
type Routers interface {
	// HasLoaded reports whether it is known which routers there are.
	HasLoaded() bool
	// AllowSessions lets sessions begin: everything is announced that should be.
	AllowSessions()
	// SilentReason returns the reason why addresses of a family are announced to no router. It is empty if they are announced to one, or if this is not
	// known yet.
	SilentReason(ipam.Family) string
}

// Dataplane is sent redirects.
type Dataplane interface {
	Running() bool
	// CallingSince returns when the call of the plugin began that is not answered yet, zero for none.
	CallingSince() time.Time
	SendRedirects(ctx context.Context, of map[netip.Addr]bool)
}

// Options configure an Ownership.
type Options struct {
	Name string
	// Elects: one gateway answers for each address. Otherwise every gateway announces every address.
	Elects    bool
	Announcer announce.Announcer
	// SetTenant is called with the tenant of an address before the address is announced, and with an empty tenant when the address is free. It may be
	// nil.
	SetTenant func(address netip.Addr, tenant string)
	// Peers is nil if this gateway works alone.
	Peers Peers
	// Right is nil if the gateway may always answer.
	Right *Right
	// Selection decides which gateways serve which addresses.
	Selection *selection.Selection
	// Routers is nil if addresses are not announced by BGP.
	Routers Routers
	// RedirectDuration is for how long packets are redirected to a former gateway. Alive returns the addresses at which a host answers.
	RedirectDuration time.Duration
	Alive            func([]netip.Addr) []netip.Addr
	// Wake makes the loop call Elect soon.
	Wake func()
}

// Ownership decides for which addresses this gateway answers. By ARP and NDP the gateways elect one gateway for each address. Otherwise every gateway
// announces every address. An Ownership belongs to the gateway's loop.
type Ownership struct {
	options Options
	// answers are the addresses that the dataplane holds. The value is true if this gateway answers for the address.
	answers map[netip.Addr]bool
	// undecided are addresses that were added since the last decision. waiting counts the addresses that are this gateway's and that it may not claim
	// yet.
	undecided []netip.Addr
	// decisions counts decisions. A decision that takes long, since the dataplane is sent redirects, is cancelled by a later one. lastInput is the
	// input of the last decision.
	decisions uint64
	lastInput string
	waiting   int
	candidate candidate
	// families decides for each address family whether this gateway is a candidate for it: after its interfaces have carried the family for a while.
	families map[ipam.Family]*candidate
	view     election.View
	// strategy is layer2 if one gateway answers for each address, else bgp. The other one of the two is nil.
	strategy redirect.Strategy
	layer2   *redirect.Layer2
	bgp      *redirect.BGP
	// pending are redirects that the dataplane does not have yet.
	pending redirect.Pending
}

// New returns an Ownership without addresses.
func New(o Options) *Ownership {
	own := &Ownership{options: o, answers: map[netip.Addr]bool{}, families: map[ipam.Family]*candidate{ipam.IPv4: {}, ipam.IPv6: {}}}
	if o.Elects {
		own.layer2 = redirect.NewLayer2(o.RedirectDuration, o.Alive)
		own.strategy = own.layer2
	} else {
		own.bgp = redirect.NewBGP(o.Name, o.RedirectDuration, o.Alive)
		own.strategy = own.bgp
	}
	return own
}

// SetTenant sets the tenant of an address of which the dataplane holds at least a part.
func (o *Ownership) SetTenant(address netip.Addr, tenant string) {
	if o.options.SetTenant != nil {
		o.options.SetTenant(address, tenant)
	}
}

// Add adds an address that the dataplane holds. The next decision says whether this gateway answers for it.
func (o *Ownership) Add(address netip.Addr) {
	if _, known := o.answers[address]; known {
		return
	}
	o.answers[address] = false
	o.undecided = append(o.undecided, address)
}

// Remove withdraws an address that the dataplane does not hold any more.
func (o *Ownership) Remove(address netip.Addr) {
	o.options.Announcer.Withdraw(address)
	o.SetTenant(address, "")
	delete(o.answers, address)
	o.strategy.Remove(address)
}

// Redirect returns to which gateway packets of unknown connections to the address are redirected. The caller sends it to the dataplane.
func (o *Ownership) Redirect(address netip.Addr) model.Redirect {
	return o.strategy.RedirectOf(address)
}

// RedirectedCount returns the number of addresses that are redirected to their former gateway.
func (o *Ownership) RedirectedCount() int { return o.strategy.FormerCount() }

// MayAnswer reports whether this gateway may answer for addresses now.
func (o *Ownership) MayAnswer() bool { return o.options.Right == nil || o.options.Right.MayAnswer() }

// Elects reports whether one gateway answers for each address.
func (o *Ownership) Elects() bool { return o.options.Elects }

// View returns the view by which this gateway elects. It is empty if gateways do not elect.
func (o *Ownership) View() election.View { return o.view }

// AnswersFor reports whether this gateway answers for the address.
func (o *Ownership) AnswersFor(address netip.Addr) bool { return o.answers[address] }

// AnsweredCount returns the number of addresses that this gateway answers for.
func (o *Ownership) AnsweredCount() (n int32) {
	for _, answers := range o.answers {
		if answers {
			n++
		}
	}
	return n
}

// CanAnnounce reports whether any host or router can receive announcements.
func (o *Ownership) CanAnnounce() bool { return o.options.Announcer.CanAnnounce() }

// AllAnnounced reports whether every address is announced that the dataplane holds and that is this gateway's. served: the dataplane has held
// everything. Without its Lease a gateway may keep its addresses, and takes no new ones.
func (o *Ownership) AllAnnounced(served bool) bool {
	decided := o.lastInput != "" && o.waiting == 0 && len(o.undecided) == 0
	return served && o.MayAnswer() && o.CanAnnounce() && decided
}

// SilentReason returns the reason why addresses of a family reach no router or host. It is empty if they reach one, or if this is not known yet.
func (o *Ownership) SilentReason(f ipam.Family) string {
	if o.options.Routers != nil {
		return o.options.Routers.SilentReason(f)
	}
	return o.options.Announcer.SilentReason(f)
}

// IsSettling reports whether a decision may change soon only because time passes.
func (o *Ownership) IsSettling(now time.Time) bool {
	if !o.options.Elects {
		return now.Sub(o.bgp.SelectedSince()) < 2*drain.WithdrawDelay
	}
	for _, c := range o.families {
		if !c.active && !c.ableSince.IsZero() {
			return true
		}
	}
	return o.waiting > 0 || !o.candidate.active
}

// NextRedirectExpiry returns when the next redirect expires, zero for never.
func (o *Ownership) NextRedirectExpiry() time.Time { return o.strategy.NextExpiry() }

// IsReplaced reports whether for each address a peer that works and stays may answer. If this gateway announces a family to nobody, its peers need
// not announce that family.
func (o *Ownership) IsReplaced() bool {
	if o.options.Peers == nil {
		return false
	}
	var staying []membership.Peer
	for _, p := range o.options.Peers.AllPeers() {
		if p.StaysActive() && p.CanTakeOver {
			staying = append(staying, p)
		}
	}
	silent := map[ipam.Family]bool{ipam.IPv4: o.SilentReason(ipam.IPv4) != "", ipam.IPv6: o.SilentReason(ipam.IPv6) != ""}
	for address := range o.answers {
		family, serving := ipam.FamilyOf(address), o.options.Selection.ServingAddress(address)
		takesOver := func(p membership.Peer) bool { return serving.By(p.Name) && (silent[family] || !p.Silent.Has(family)) }
		if !slices.ContainsFunc(staying, takesOver) {
			return false
		}
	}
	return len(staying) > 0
}

// AnswererOf returns the gateway that is to answer for an address as far as this gateway knows, empty for none. If gateways do not elect, several may
// answer: then it is this gateway if it serves the address, else the other one.
func (o *Ownership) AnswererOf(address netip.Addr, other string) string {
	serving := o.options.Selection.ServingAddress(address)
	answerer := o.published().AnswererOf(address, serving)
	if answerer == "" && !o.options.Elects && serving.By(other) {
		return other
	}
	return answerer
}

// BelongsToPeer reports whether another gateway is to answer for an address, and this one is not.
func (o *Ownership) BelongsToPeer(address netip.Addr) bool {
	answerer := o.published().AnswererOf(address, o.options.Selection.ServingAddress(address))
	return answerer != o.options.Name && (answerer != "" || !o.options.Elects)
}

// published returns what peers know about the addresses that this gateway answers for.
func (o *Ownership) published() election.Gateway {
	return election.Gateway{Name: o.options.Name, Elects: o.options.Elects, View: o.view}
}

// decide withdraws addresses that are not this gateway's. Then it claims addresses for which owner names this gateway, as far as mayClaim allows it. input
// stands for everything that the decision depends on: if it has not changed, only new addresses are examined, so that one more address among
// thousands stays cheap. decide returns false if another decision was made while the dataplane was called.
func (o *Ownership) decide(ctx context.Context, d Dataplane, input string, owner func(netip.Addr) (name string, allowed bool), mayClaim func(netip.Addr) bool) bool {
	o.decisions++
	decision := o.decisions
	addresses := slices.Values(o.undecided)
	if input != o.lastInput || o.waiting > 0 {
		addresses = maps.Keys(o.answers)
	}
	o.lastInput, o.undecided, o.waiting = input, nil, 0
	var withdrawn, claimed []netip.Addr
	for address := range addresses {
		answers, held := o.answers[address]
		name, allowed := owner(address)
		switch owns := held && allowed && name == o.options.Name; {
		case answers && !owns:
			withdrawn = append(withdrawn, address)
		case owns && !answers && mayClaim(address):
			claimed = append(claimed, address)
		case owns && !answers:
			o.waiting++
		}
	}
	if len(withdrawn) > 0 {
		o.options.Announcer.Withdraw(withdrawn...)
	}
	for _, address := range withdrawn {
		o.answers[address] = false
	}
	if o.options.Peers != nil {
		o.applyRedirects(ctx, d)
	}
	if o.decisions != decision {
		o.lastInput = ""
		o.options.Wake()
		return false
	}
	claimed = slices.DeleteFunc(claimed, func(address netip.Addr) bool {
		waits := o.awaitsRedirect(d, address)
		if waits {
			o.waiting++
		}
		return waits
	})
	for _, address := range claimed {
		o.answers[address] = true
	}
	if len(claimed) > 0 {
		o.options.Announcer.Announce(claimed...)
	}
	return true
}

// applyRedirects sends changed redirects to the dataplane, before addresses with these redirects are claimed.
func (o *Ownership) applyRedirects(ctx context.Context, d Dataplane) {
	o.pending.Add(o.strategy.Update(o.options.Peers.AllPeers(), o.answers, time.Now())...)
	switch {
	case !d.Running():
		o.pending.Clear() // a plugin that starts gets all redirects
	case o.pending.Empty() || !d.CallingSince().IsZero():
		// The plugin works on a call. It gets the redirects after its answer.
	default:
		d.SendRedirects(ctx, o.pending.Begin())
		o.pending.End()
	}
}

// redirectTimeout is for how long an address is not claimed because the dataplane does not have its redirect yet.
const redirectTimeout = 10 * time.Second

// awaitsRedirect reports whether an address is not to be claimed yet because the dataplane is about to get its redirect.
func (o *Ownership) awaitsRedirect(d Dataplane, address netip.Addr) bool {
	if !o.pending.Has(address) {
		return false
	}
	since := d.CallingSince()
	return !since.IsZero() && time.Since(since) < redirectTimeout
}
