// Package election decides which gateway answers for an address. Only one may: ARP and NDP give one MAC for each address.
//
// Gateways do not vote. Each chooses by rendezvous hashing (Thaler and Ravishankar, 1996) among the gateways that it believes alive.
// So a gateway that comes or goes moves no address but its own, and addresses spread evenly. Gateways may believe different things
// for a while. So each gateway publishes the view that it acts upon, after it has withdrawn the addresses which that view gives to
// others. The winner of an address answers for it only once no living peer has published a view by which the peer wins it.
package election

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/ipam"
)

// View has all that a gateway's choices depend on.
type View struct {
	// Candidates are the names of the gateways that may answer, sorted.
	Candidates []string `json:"candidates"`
	// WithoutIPv4 and WithoutIPv6 name the candidates whose interfaces do not carry the family, sorted. They answer for no address of the family. A
	// candidate whose own interfaces do not carry it names itself in its view.
	WithoutIPv4 []string `json:"withoutIPv4,omitempty"`
	WithoutIPv6 []string `json:"withoutIPv6,omitempty"`
	// Configuration identifies everything else that the choices depend on: which gateways serve which addresses. A gateway cannot know for
	// which addresses a peer with another configuration answers.
	Configuration string `json:"configuration,omitempty"`
}

// Equal reports whether two views lead to the same choices.
func (v View) Equal(o View) bool {
	return v.Configuration == o.Configuration && slices.Equal(v.Candidates, o.Candidates) && slices.Equal(v.WithoutIPv4, o.WithoutIPv4) && slices.Equal(v.WithoutIPv6, o.WithoutIPv6)
}

// WithoutFamily returns the list of candidates whose interfaces do not carry the family, to read or to set.
func (v *View) WithoutFamily(f ipam.Family) *[]string {
	if f == ipam.IPv4 {
		return &v.WithoutIPv4
	}
	return &v.WithoutIPv6
}

// Winner returns the candidate that answers for the address by this view, "" if there is none. Candidates whose interfaces do not carry the
// address's family are left out. serves is as in the function Winner.
func (v View) Winner(address netip.Addr, serves func(string) bool) string {
	return Winner(address, v.Candidates, v.eligible(address, serves))
}

// eligible returns whether a candidate may answer for the address: it carries the address's family, and serves the address.
func (v View) eligible(address netip.Addr, serves func(string) bool) func(name string) bool {
	without := *v.WithoutFamily(ipam.FamilyOf(address))
	return func(name string) bool { return !slices.Contains(without, name) && (serves == nil || serves(name)) }
}

// Gateway is what a gateway publishes about the addresses that it answers for.
type Gateway struct {
	Name string
	// Elects: one gateway answers for each address, by View. Otherwise each gateway that serves an address answers for it.
	Elects bool
	View   View
}

// AnswererOf returns the gateway that answers for the address as far as g knows: the winner of its view if it elects, else g itself if it serves the
// address. It is empty if there is none.
func (g Gateway) AnswererOf(address netip.Addr, serves func(string) bool) string {
	return g.view().Winner(address, serves)
}

// Candidates returns the gateways among which AnswererOf chooses.
func (g Gateway) Candidates(address netip.Addr, serves func(string) bool) (names []string) {
	eligible := g.view().eligible(address, serves)
	for _, name := range g.view().Candidates {
		if eligible(name) {
			names = append(names, name)
		}
	}
	return names
}

// view returns the view that decides. A gateway that does not elect answers for its own part, whatever others do.
func (g Gateway) view() View {
	if g.Elects {
		return g.View
	}
	return View{Candidates: []string{g.Name}}
}

// Winner returns the candidate that answers for the address, "" if there is none. serves reports whether a candidate serves the address at
// all; nil means that all do. The order of candidates does not matter.
func Winner(address netip.Addr, candidates []string, serves func(string) bool) string {
	var winner string
	var best uint64
	for _, name := range candidates {
		if serves != nil && !serves(name) {
			continue
		}
		if s := score(address, name); winner == "" || s > best || s == best && name < winner {
			winner, best = name, s
		}
	}
	return winner
}

// MayBegin reports whether the gateway may begin to answer for an address that its own view gives to it: whether no living peer answers for it.
func MayBegin(address netip.Addr, own View, peers []Peer, serves func(string) bool) bool {
	return !slices.ContainsFunc(peers, func(p Peer) bool {
		if p.View.Equal(own) {
			return false
		}
		return p.hasOtherConfiguration(own) || p.wins(address, own, serves)
	})
}

// ConfigurationsDiffer reports whether a peer answers for addresses by another configuration. It is unknown for which. So a gateway that does not answer
// for any address yet should not begin.
func ConfigurationsDiffer(own View, peers []Peer) bool {
	return slices.ContainsFunc(peers, func(p Peer) bool { return p.hasOtherConfiguration(own) })
}

// hasOtherConfiguration reports whether the peer answers for addresses by another configuration. A peer that is no candidate in its own view answers for none.
func (p Peer) hasOtherConfiguration(own View) bool {
	return p.View.Configuration != own.Configuration && slices.Contains(p.View.Candidates, p.Name)
}

// wins reports whether the peer has published a view of the same configuration by which it wins the address.
func (p Peer) wins(address netip.Addr, own View, serves func(string) bool) bool {
	return p.View.Configuration == own.Configuration && p.View.Winner(address, serves) == p.Name
}

// MayAnswer reports whether the gateway name, which wins the address by the own view, may answer for it by now: name is this gateway (self), or a
// peer that has published a view by which it wins, too.
func MayAnswer(name, self string, address netip.Addr, own View, peers []Peer, serves func(string) bool) bool {
	return name == self || slices.ContainsFunc(peers, func(p Peer) bool {
		return p.Name == name && p.wins(address, own, serves)
	})
}

// Peer is another gateway whose lease has not ended.
type Peer struct {
	Name string
	View View
}

// score hashes a name and an address: FNV-1a, and the finalizer of SplitMix64, without which similar names have similar scores.
func score(address netip.Addr, name string) uint64 {
	h := fnv.New64a()
	as16 := address.As16()
	h.Write(as16[:])
	h.Write([]byte(name))
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(len(name)))
	h.Write(length[:])
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
