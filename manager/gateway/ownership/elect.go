package ownership

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/membership"
)

// State is the state of the gateway that elections depend on.
type State struct {
	// Served: the dataplane has held everything since this process started.
	Served bool
	// Draining: the gateway drains. WithdrawDelayOver: it has drained for so long that its peers know it.
	Draining, WithdrawDelayOver bool
	// RedirectAddresses returns the own addresses to which peers may redirect packets while the gateway works. It is nil if the dataplane cannot take
	// redirected packets.
	RedirectAddresses func() []netip.Addr
}

// Elect decides again which addresses this gateway answers for.
func (o *Ownership) Elect(ctx context.Context, d Dataplane, s State) {
	if o.options.Elects {
		o.elect(ctx, d, s)
	} else {
		o.answerForAll(ctx, d, s)
	}
}

// elect answers for the addresses that this gateway is elected for.
func (o *Ownership) elect(ctx context.Context, d Dataplane, s State) {
	right := o.options.Right
	owns, holds := right.ownsAddresses(), right.holdsLease()
	if owns && !holds {
		return // while the API is unreachable, the answered addresses and the candidates stay as they are
	}
	peers, candidates, known := o.options.Peers.ActivePeers()
	now := time.Now()
	o.view = election.View{Configuration: o.options.Selection.Digest()}
	works := s.Served && o.CanAnnounce()
	// Without a Lease this gateway does not know the other candidates. If it had a Lease and lost its addresses, it has failed. Among candidates with
	// another configuration, for example of another version, it does not become a candidate: they would withdraw addresses that it could not take.
	able := works && owns && (o.candidate.active || !election.ConfigurationsDiffer(o.view, peers))
	candidate := !s.Draining && o.candidate.update(able, len(candidates) > 0 || !known, right.noPeer(), now)
	if candidate {
		candidates = append(candidates, o.options.Name)
		slices.Sort(candidates)
	}
	o.view.Candidates = candidates
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		*o.view.WithoutFamily(f) = o.candidatesWithout(f, peers, able, known, now)
	}
	published := o.options.Peers.IsPublished(o.view)
	decided := o.decide(ctx, d, fmt.Sprint(holds, published, o.view, peers), func(address netip.Addr) (string, bool) {
		serving := o.options.Selection.ServingAddress(address)
		name := o.view.Winner(address, serving)
		// Until the new owner knows that it is the owner, it does not redirect packets. The former owner still has the address.
		if election.MayAnswer(name, o.options.Name, address, o.view, peers, serving) {
			o.layer2.SetOwner(address, name, o.options.Name, now)
		}
		return name, holds
	}, func(address netip.Addr) bool {
		return published && election.MayBegin(address, o.view, peers, o.options.Selection.ServingAddress(address))
	})
	if !decided {
		return
	}
	o.resume(owns)
	// The view is published after the withdrawal of all addresses that are not this gateway's by it.
	o.options.Peers.Publish(membership.Published{View: o.view, Candidate: candidate, Draining: s.Draining, CanTakeOver: able, SilentFamilies: o.silentFamilies(), RedirectAddresses: redirectAddresses(s, works)})
}

// answerForAll answers for every address for which the AddressPools select this gateway, as its peers do.
func (o *Ownership) answerForAll(ctx context.Context, d Dataplane, s State) {
	owns := o.options.Right == nil || o.options.Right.ownsAddresses()
	mayAnswer, digest, now := owns && o.MayAnswer(), o.options.Selection.Digest(), time.Now()
	if o.options.Peers != nil {
		// Gateways that elect learn from the empty view that this gateway claims no address.
		o.options.Peers.Publish(membership.Published{View: election.View{Configuration: digest}, Draining: s.Draining, CanTakeOver: s.Served && mayAnswer && o.CanAnnounce(), SilentFamilies: o.silentFamilies(), RedirectAddresses: redirectAddresses(s, s.Served)})
		o.bgp.Select(o.options.Selection, now)
	}
	selectionKnown := now.Sub(o.bgp.SelectedSince()) >= drain.WithdrawDelay
	decided := o.decide(ctx, d, fmt.Sprint(mayAnswer, s.WithdrawDelayOver, digest, selectionKnown), func(address netip.Addr) (string, bool) {
		serving := o.options.Selection.ServingAddress(address)
		// Peers first need to learn that they may redirect to this gateway.
		if leaves := !serving.By(o.options.Name); s.WithdrawDelayOver || leaves && (selectionKnown || !o.answers[address]) {
			return "", mayAnswer
		}
		return o.options.Name, mayAnswer
	}, func(netip.Addr) bool { return true })
	if !decided {
		return
	}
	o.resume(owns)
	if o.options.Routers != nil && s.Served && mayAnswer {
		o.options.Routers.AllowSessions()
	}
}

// resume takes the right to answer again once everything is withdrawn that this gateway could not keep. This needs a Lease.
func (o *Ownership) resume(owns bool) {
	if !owns && o.options.Right.acquire() {
		o.options.Wake()
	}
}

// candidatesWithout returns the candidates that are none for addresses of the family: peers by their own views, this gateway by its interfaces. After
// a loss of the family this gateway waits before it is a candidate for it again, as after any failure.
func (o *Ownership) candidatesWithout(f ipam.Family, peers []election.Peer, able, known bool, now time.Time) (without []string) {
	others := 0
	for _, p := range peers {
		switch {
		case !slices.Contains(o.view.Candidates, p.Name):
		case slices.Contains(*p.View.WithoutFamily(f), p.Name):
			without = append(without, p.Name)
		default:
			others++
		}
	}
	candidate := o.families[f].update(able && o.options.Announcer.SilentReason(f) == "", others > 0 || !known, o.options.Right.noPeer(), now)
	if !candidate && slices.Contains(o.view.Candidates, o.options.Name) {
		without = append(without, o.options.Name)
	}
	slices.Sort(without)
	return without
}

// silentFamilies returns the families that this gateway announces to nobody, or not for a while, or of which this is not known yet.
func (o *Ownership) silentFamilies() membership.SilentFamilies {
	silent := func(f ipam.Family) bool {
		return o.SilentReason(f) != "" || o.options.Elects && !o.families[f].active || o.options.Routers != nil && !o.options.Routers.HasLoaded()
	}
	return membership.SilentFamilies{IPv4: silent(ipam.IPv4), IPv6: silent(ipam.IPv6)}
}

// redirectAddresses returns the own addresses to which peers may redirect packets, none if the gateway does not work.
func redirectAddresses(s State, works bool) []netip.Addr {
	if !works || s.RedirectAddresses == nil {
		return nil
	}
	return s.RedirectAddresses()
}
