// Package ownership decides for which addresses this gateway answers, of those that its dataplane holds: whether it may answer at all, which gateway is
// elected for each address, and to which one packets of unknown connections are redirected meanwhile.
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

// Peers are the other gateways as this one knows them by their Leases, and knows that they know it.
type Peers interface {
	ActivePeers() (peers []election.Peer, candidates []string, known bool)
	AllPeers() []membership.Peer
	Publish(membership.Published)
	IsPublished(election.View) bool
}

// Routers are those that addresses are announced to by BGP.
type Routers interface {
	// HasLooked tells whether it is known which routers there are.
	HasLoaded() bool
	// MayBegin lets sessions begin: everything is announced that is to be.
	AllowSessions()
	// Silent is why no router is told of addresses of a family, empty if one is, or that is not known yet.
	Silent(ipam.Family) string
}

// Dataplane is sent redirects.
type Dataplane interface {
	Running() bool
	// CallingSince is when the call began that has not been answered yet, zero for none.
	CallingSince() time.Time
	SendRedirects(ctx context.Context, of map[netip.Addr]bool)
}

// Options are what an Ownership depends on.
type Options struct {
	Name string
	// Elects: one gateway answers for each address; otherwise every gateway announces every address.
	Elects    bool
	Announcer announce.Announcer
	// SetTenant is told whose an address is before that is announced, and with an empty tenant that it is nobody's. It may be nil.
	SetTenant func(address netip.Addr, tenant string)
	// Peers are nil where nobody is told of this gateway.
	Peers Peers
	// Right is nil where the gateway may always answer.
	Right *Right
	// Selection is which gateways serve which addresses.
	Selection *selection.Selection
	// Routers are nil where addresses are not announced by BGP.
	Routers Routers
	// Redirect is for how long packets are redirected to a former gateway. Alive returns those of the addresses at which a host answers.
	Redirect time.Duration
	Alive    func([]netip.Addr) []netip.Addr
	// Wake has Elect be called soon.
	Wake func()
}

// Ownership is which addresses this gateway answers for. By ARP and NDP the gateways elect one for each address; otherwise every gateway announces every
// address. It belongs to the gateway's loop.
type Ownership struct {
	options Options
	// answers are the addresses that the dataplane holds, and whether they are answered for.
	answers map[netip.Addr]bool
	// undecided are addresses that have come since the last decision. waiting is how many addresses are this gateway's and still another one's.
	undecided []netip.Addr
	// decisions counts decisions: one that takes long, as the dataplane is sent redirects, is given up for a later one. known is what the last one was
	// decided by.
	decisions uint64
	known     string
	waiting   int
	candidate candidate
	// families decides for each family whether this gateway is a candidate for its addresses: after its interfaces have carried the family for a while.
	families map[ipam.Family]*candidate
	view     election.View
	// redirects are by layer2 where one gateway answers for each address, else by bgp. The other one is nil.
	redirects redirect.Strategy
	layer2    *redirect.Layer2
	bgp       *redirect.BGP
	// pending are redirects that the dataplane does not have yet.
	pending redirect.Pending
}

// New returns an Ownership of no address.
func New(o Options) *Ownership {
	own := &Ownership{options: o, answers: map[netip.Addr]bool{}, families: map[ipam.Family]*candidate{ipam.IPv4: {}, ipam.IPv6: {}}}
	if o.Elects {
		own.layer2 = redirect.NewLayer2(o.Redirect, o.Alive)
		own.redirects = own.layer2
	} else {
		own.bgp = redirect.NewBGP(o.Name, o.Redirect, o.Alive)
		own.redirects = own.bgp
	}
	return own
}

// SetTenant says whose an address is that the dataplane holds in part.
func (o *Ownership) SetTenant(address netip.Addr, tenant string) {
	if o.options.SetTenant != nil {
		o.options.SetTenant(address, tenant)
	}
}

// Add adds an address that the dataplane holds. It may be answered for, once that is decided.
func (o *Ownership) Add(address netip.Addr) {
	if _, known := o.answers[address]; known {
		return
	}
	o.answers[address] = false
	o.undecided = append(o.undecided, address)
}

// Remove ends to answer for an address that the dataplane does not hold any more.
func (o *Ownership) Remove(address netip.Addr) {
	o.options.Announcer.Withdraw(address)
	o.SetTenant(address, "")
	delete(o.answers, address)
	o.redirects.Remove(address)
}

// Redirect is to which gateway packets of unknown connections to the address are redirected. The dataplane is about to be sent it.
func (o *Ownership) Redirect(address netip.Addr) model.Handover { return o.redirects.Send(address) }

// Redirected is the number of addresses that are redirected to the gateway that owned them before.
func (o *Ownership) Redirected() int { return o.redirects.FormerCount() }

// MayAnswer tells whether this gateway may answer for addresses at all, as of now.
func (o *Ownership) MayAnswer() bool { return o.options.Right == nil || o.options.Right.MayAnswer() }

// Elects tells whether one gateway answers for each address.
func (o *Ownership) Elects() bool { return o.options.Elects }

// View is what this gateway elects by, if it does.
func (o *Ownership) View() election.View { return o.view }

// Answers tells whether this gateway answers for the address.
func (o *Ownership) Answers(address netip.Addr) bool { return o.answers[address] }

// Answered is the number of addresses that this gateway answers for.
func (o *Ownership) Answered() (n int32) {
	for _, answers := range o.answers {
		if answers {
			n++
		}
	}
	return n
}

// Able tells whether anything that is announced would be heard.
func (o *Ownership) Able() bool { return o.options.Announcer.Able() }

// Announces tells whether all that is held, and is this gateway's, is announced. served: the dataplane has held everything. Without its Lease a gateway
// may keep what it has, and take nothing new.
func (o *Ownership) Announces(served bool) bool {
	decided := o.known != "" && o.waiting == 0 && len(o.undecided) == 0
	return served && o.MayAnswer() && o.Able() && decided
}

// Silent is why no router or host would hear of addresses of a family, empty if one would, or it is not known yet.
func (o *Ownership) Silent(f ipam.Family) string {
	if o.options.Routers != nil {
		return o.options.Routers.Silent(f)
	}
	return o.options.Announcer.Silent(f)
}

// Settling tells whether a decision may change soon by the passing of time alone.
func (o *Ownership) Settling(now time.Time) bool {
	if !o.options.Elects {
		return now.Sub(o.bgp.SelectedSince()) < 2*drain.Notice
	}
	for _, c := range o.families {
		if !c.was && !c.since.IsZero() {
			return true
		}
	}
	return o.waiting > 0 || !o.candidate.was
}

// RedirectsExpire is when the next redirect ends by the passing of time alone, zero for never.
func (o *Ownership) RedirectsExpire() time.Time { return o.redirects.NextExpiry() }

// Replaced tells whether others that stay, and work, may answer for each address that is held. Of a family of which nobody hears from this gateway,
// nobody needs to hear from others.
func (o *Ownership) Replaced() bool {
	if o.options.Peers == nil {
		return false
	}
	var staying []membership.Peer
	for _, p := range o.options.Peers.AllPeers() {
		if p.StaysActive() && p.CanTakeOver {
			staying = append(staying, p)
		}
	}
	silent := map[ipam.Family]bool{ipam.IPv4: o.Silent(ipam.IPv4) != "", ipam.IPv6: o.Silent(ipam.IPv6) != ""}
	for address := range o.answers {
		family, serves := ipam.FamilyOf(address), o.options.Selection.ServingAddress(address)
		takesOver := func(p membership.Peer) bool { return serves.By(p.Name) && (silent[family] || !p.Silent.Has(family)) }
		if !slices.ContainsFunc(staying, takesOver) {
			return false
		}
	}
	return len(staying) > 0
}

// AnswererOf is the gateway that is to answer for an address, as far as this one knows, empty for none. Where nobody is elected it may be several: this
// gateway counts first, and then the other one.
func (o *Ownership) AnswererOf(address netip.Addr, other string) string {
	serves := o.options.Selection.ServingAddress(address)
	if o.options.Elects {
		return o.view.Winner(address, serves)
	}
	names := []string{o.options.Name, other}
	if i := slices.IndexFunc(names, serves.By); i >= 0 {
		return names[i]
	}
	return ""
}

// IsAnothers tells whether another gateway is to answer for an address, instead of this one.
func (o *Ownership) IsAnothers(address netip.Addr) bool {
	serves := o.options.Selection.ServingAddress(address)
	if !o.options.Elects {
		return !serves.By(o.options.Name)
	}
	winner := o.view.Winner(address, serves)
	return winner != "" && winner != o.options.Name
}

// decide withdraws what is not this gateway's, and then claims what is and may be: an address that owner names it for, if it has what it needs for
// that. Where nothing has changed of what decides, which known stands for, only new addresses are looked at: one more among thousands costs no more
// than one. It returns false if it was given up, since something else was decided while the dataplane was called.
func (o *Ownership) decide(ctx context.Context, d Dataplane, known string, owner func(netip.Addr) (name string, may bool), may func(netip.Addr) bool) bool {
	o.decisions++
	decision := o.decisions
	look := slices.Values(o.undecided)
	if known != o.known || o.waiting > 0 {
		look = maps.Keys(o.answers)
	}
	o.known, o.undecided, o.waiting = known, nil, 0
	var gone, claimed []netip.Addr
	for address := range look {
		answers, held := o.answers[address]
		name, able := owner(address)
		switch is := held && able && name == o.options.Name; {
		case answers && !is:
			gone = append(gone, address)
		case is && !answers && may(address):
			claimed = append(claimed, address)
		case is && !answers:
			o.waiting++
		}
	}
	if len(gone) > 0 {
		o.options.Announcer.Withdraw(gone...)
	}
	for _, address := range gone {
		o.answers[address] = false
	}
	if o.options.Peers != nil {
		o.applyRedirects(ctx, d)
	}
	if o.decisions != decision {
		o.known = ""
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

// applyRedirects sends the dataplane the redirects that have changed, before anything is claimed by them.
func (o *Ownership) applyRedirects(ctx context.Context, d Dataplane) {
	o.pending.Add(o.redirects.Update(o.options.Peers.AllPeers(), o.answers, time.Now())...)
	switch {
	case !d.Running():
		o.pending.Clear() // a plugin that does not run is sent all of it later
	case o.pending.Empty() || !d.CallingSince().IsZero():
		// A plugin that is called is sent it after its answer.
	default:
		d.SendRedirects(ctx, o.pending.Begin())
		o.pending.End()
	}
}

// redirectPatience is for how long an address is not claimed because the dataplane does not have its redirect yet.
const redirectPatience = 10 * time.Second

// awaitsRedirect tells whether an address is not to be claimed yet, since the dataplane is about to get its redirect.
func (o *Ownership) awaitsRedirect(d Dataplane, address netip.Addr) bool {
	if !o.pending.Has(address) {
		return false
	}
	since := d.CallingSince()
	return !since.IsZero() && time.Since(since) < redirectPatience
}
