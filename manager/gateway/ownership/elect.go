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

// State is what the gateway is like now.
type State struct {
	// Served: the dataplane has held everything since this process began.
	Served bool
	// Draining: the gateway drains. Left: it has done so for so long that peers have heard of it.
	Draining, Left bool
	// Reached are the own addresses to which peers may redirect packets, as long as the gateway works. It is nil where its dataplane cannot take them.
	Reached func() []netip.Addr
}

// Elect brings what is answered for to what this gateway and its peers know now.
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
		return // what is answered for stays as it is while the API is away, and so do the candidates
	}
	peers, candidates, known := o.options.Peers.ActivePeers()
	now := time.Now()
	o.view = election.View{Configuration: o.options.Selection.Digest()}
	works := s.Served && o.Able()
	// Without a Lease nobody knows who else is a candidate. A gateway that had a Lease, and lost what it had by it, has failed. Beside those that go by
	// another configuration, as another version may, a gateway does not become a candidate: they would withdraw what it could not take.
	able := works && owns && (o.candidate.was || !election.Strangers(o.view, peers))
	is := !s.Draining && o.candidate.isCandidate(able, len(candidates) > 0 || !known, right.noPeer(), now)
	if is {
		candidates = append(candidates, o.options.Name)
		slices.Sort(candidates)
	}
	o.view.Candidates = candidates
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		*o.view.WithoutFamily(f) = o.candidatesWithout(f, peers, able, known, now)
	}
	told := o.options.Peers.IsPublished(o.view)
	decided := o.decide(ctx, d, fmt.Sprint(holds, told, o.view, peers), func(address netip.Addr) (string, bool) {
		serves := o.options.Selection.ServingAddress(address)
		name := o.view.Winner(address, serves)
		// A gateway that is to own it and does not know that yet redirects to nobody, either: the one that owned it before does still.
		if election.Acts(name, o.options.Name, address, o.view, peers, serves) {
			o.layer2.SetOwner(address, name, o.options.Name, now)
		}
		return name, holds
	}, func(address netip.Addr) bool {
		return told && election.MayClaim(address, o.view, peers, o.options.Selection.ServingAddress(address))
	})
	if !decided {
		return
	}
	o.beginAgain(owns)
	// It publishes its view after it has withdrawn what is not its own by that.
	o.options.Peers.Publish(membership.Published{View: o.view, Candidate: is, Draining: s.Draining, CanTakeOver: able, SilentFamilies: o.unheard(), RedirectAddresses: reached(s, works)})
}

// answerForAll answers for every address that the pools have this gateway serve, as other gateways do, as long as it may answer at all.
func (o *Ownership) answerForAll(ctx context.Context, d Dataplane, s State) {
	owns := o.options.Right == nil || o.options.Right.ownsAddresses()
	permitted, digest, now := owns && o.MayAnswer(), o.options.Selection.Digest(), time.Now()
	if o.options.Peers != nil {
		// Gateways that elect need to know that this one has nothing that they might have.
		o.options.Peers.Publish(membership.Published{View: election.View{Configuration: digest}, Draining: s.Draining, CanTakeOver: s.Served && permitted && o.Able(), SilentFamilies: o.unheard(), RedirectAddresses: reached(s, s.Served)})
		o.bgp.Select(o.options.Selection, now)
	}
	chosen := now.Sub(o.bgp.SelectedSince()) >= drain.Notice
	decided := o.decide(ctx, d, fmt.Sprint(permitted, s.Left, digest, chosen), func(address netip.Addr) (string, bool) {
		serving := o.options.Selection.ServingAddress(address)
		// Others get a moment to know that this one may be asked.
		if leaves := !serving.By(o.options.Name); s.Left || leaves && (chosen || !o.answers[address]) {
			return "", permitted
		}
		return o.options.Name, permitted
	}, func(netip.Addr) bool { return true })
	if !decided {
		return
	}
	o.beginAgain(owns)
	if o.options.Routers != nil && s.Served && permitted {
		o.options.Routers.AllowSessions()
	}
}

// beginAgain follows when nothing is answered for any more since what the gateway had was not kept. With a Lease it may look again.
func (o *Ownership) beginAgain(owns bool) {
	if !owns && o.options.Right.acquire() {
		o.options.Wake()
	}
}

// candidatesWithout names the candidates that are none for addresses of the family: other candidates by their own views, this gateway by its
// interfaces. After a loss this gateway is a candidate for the family again as it is for election: after a while.
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
	is := o.families[f].isCandidate(able && o.options.Announcer.Silent(f) == "", others > 0 || !known, o.options.Right.noPeer(), now)
	if !is && slices.Contains(o.view.Candidates, o.options.Name) {
		without = append(without, o.options.Name)
	}
	slices.Sort(without)
	return without
}

// unheard are the families of whose addresses nobody would hear from this gateway, or not for a while, or it is not known yet.
func (o *Ownership) unheard() membership.SilentFamilies {
	is := func(f ipam.Family) bool {
		return o.Silent(f) != "" || o.options.Elects && !o.families[f].was || o.options.Routers != nil && !o.options.Routers.HasLoaded()
	}
	return membership.SilentFamilies{IPv4: is(ipam.IPv4), IPv6: is(ipam.IPv6)}
}

// reached are the own addresses for connections that this gateway knows, as long as it works.
func reached(s State, works bool) []netip.Addr {
	if !works || s.Reached == nil {
		return nil
	}
	return s.Reached()
}
