// Package election decides which gateway answers for an address where only one may, since ARP and NDP know one MAC for each.
//
// Nobody is asked: every gateway chooses by rendezvous hashing (Thaler and Ravishankar, 1996) among those that it believes alive,
// so a gateway that comes or goes moves no address but its own, and addresses spread evenly. Since beliefs differ for a while,
// each gateway publishes the view that it acts upon, and does so after it has let go of what the view gives to others. Who wins an
// address takes it only once no living peer acts upon a view by which the peer has it.
package election

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/ipam"
)

// View is what a gateway decides by.
type View struct {
	// Candidates are the names of the gateways that may answer, sorted.
	Candidates []string `json:"candidates"`
	// WithoutIPv4 and WithoutIPv6 name the candidates whose interfaces do not carry the family, sorted. They answer for no address of the family. A
	// candidate reports it by its own name in its own view.
	WithoutIPv4 []string `json:"withoutIPv4,omitempty"`
	WithoutIPv6 []string `json:"withoutIPv6,omitempty"`
	// Configuration stands for everything else that decides: which gateways serve which addresses. What gateways of different
	// configurations answer for cannot be known.
	Configuration string `json:"configuration,omitempty"`
}

// Equal tells whether two views lead to the same choices.
func (v View) Equal(o View) bool {
	return v.Configuration == o.Configuration && slices.Equal(v.Candidates, o.Candidates) && slices.Equal(v.WithoutIPv4, o.WithoutIPv4) && slices.Equal(v.WithoutIPv6, o.WithoutIPv6)
}

// WithoutFamily is the list of candidates whose interfaces do not carry the family, to read or to set.
func (v *View) WithoutFamily(f ipam.Family) *[]string {
	if f == ipam.IPv4 {
		return &v.WithoutIPv4
	}
	return &v.WithoutIPv6
}

// Winner is the candidate that answers for the address by this view, "" if there is none. It is the winner among the candidates that carry the address's
// family; serves selects among them as in the function Winner.
func (v View) Winner(address netip.Addr, serves func(string) bool) string {
	without := *v.WithoutFamily(ipam.FamilyOf(address))
	if len(without) == 0 {
		return Winner(address, v.Candidates, serves)
	}
	return Winner(address, v.Candidates, func(name string) bool {
		return !slices.Contains(without, name) && (serves == nil || serves(name))
	})
}

// Gateway is what a gateway publishes about the addresses that it answers for.
type Gateway struct {
	Name string
	// Elects: one gateway answers for each address, by View. Otherwise each gateway that serves an address answers for it.
	Elects bool
	View   View
}

// AnswererOf names the gateway that answers for the address as far as g knows: the winner of its view if it elects, else g itself if it serves the
// address. It is empty if there is none.
func (g Gateway) AnswererOf(address netip.Addr, serves func(string) bool) string {
	switch {
	case g.Elects:
		return g.View.Winner(address, serves)
	case serves == nil || serves(g.Name):
		return g.Name
	}
	return ""
}

// Candidates are the gateways among which AnswererOf chooses.
func (g Gateway) Candidates(address netip.Addr, serves func(string) bool) (names []string) {
	among := []string{g.Name}
	if g.Elects {
		without := *g.View.WithoutFamily(ipam.FamilyOf(address))
		among = slices.DeleteFunc(slices.Clone(g.View.Candidates), func(name string) bool { return slices.Contains(without, name) })
	}
	return slices.DeleteFunc(among, func(name string) bool { return serves != nil && !serves(name) })
}

// Winner is the candidate that answers for the address, "" if there is none. serves says which candidates serve it at all; nil
// means all. The order of candidates does not matter.
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

// MayClaim tells whether the gateway may begin to answer for an address that its own view gives to it: no living peer answers for it.
func MayClaim(address netip.Addr, own View, peers []Peer, serves func(string) bool) bool {
	return !slices.ContainsFunc(peers, func(p Peer) bool {
		if p.View.Equal(own) {
			return false
		}
		return p.stranger(own) || p.wins(address, own, serves)
	})
}

// Strangers tells whether a peer answers for addresses by another configuration. Which ones cannot be known; so who does not answer for any
// yet had better not begin.
func Strangers(own View, peers []Peer) bool {
	return slices.ContainsFunc(peers, func(p Peer) bool { return p.stranger(own) })
}

// stranger: one that is no candidate by its own view answers for nothing, whatever else it goes by.
func (p Peer) stranger(own View) bool {
	return p.View.Configuration != own.Configuration && slices.Contains(p.View.Candidates, p.Name)
}

// wins tells whether the peer has published a view of the same configuration by which the address is its own.
func (p Peer) wins(address netip.Addr, own View, serves func(string) bool) bool {
	return p.View.Configuration == own.Configuration && p.View.Winner(address, serves) == p.Name
}

// Acts tells whether a gateway that wins the address by the own view may have it by now: it is this one (self), or a peer that has published a
// view by which it wins as well.
func Acts(name, self string, address netip.Addr, own View, peers []Peer, serves func(string) bool) bool {
	return name == self || slices.ContainsFunc(peers, func(p Peer) bool {
		return p.Name == name && p.wins(address, own, serves)
	})
}

// Peer is another gateway whose lease has not ended.
type Peer struct {
	Name string
	View View
}

// score mixes a name and an address: FNV-1a and the finalizer of SplitMix64, without which scores of names alike lie side by side.
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
