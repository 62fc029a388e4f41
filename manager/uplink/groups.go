package uplink

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MostGroups is how many multicast groups Groups joins at an interface. The kernel looks through all groups of an interface for each packet to any
// of them, and for each that is joined: this many take half a second, and four times as many fifteen. Switches know about as many: a Linux bridge
// ceases to snoop at 4096 (mcast_hash_max).
const MostGroups = 4096

// mostSockets bounds how many sockets hold the memberships. The kernel takes the memory of each, 56 bytes, from what a socket may have (sysctl
// net.core.optmem_max): one has room for 365 memberships where that is 20480 bytes, as before Linux 6.8.
const mostSockets = 64

var (
	// ErrTooManyGroups is that of a group which would be one more than MostGroups.
	ErrTooManyGroups = fmt.Errorf("%d groups are joined at the interface, and no more are", MostGroups)
	errNoRoom        = fmt.Errorf("%d sockets have no room for another group: set sysctl net.core.optmem_max to 131072", mostSockets)
)

// Groups are IPv6 multicast groups that this process is a member of at an interface. As long as it is, the kernel says so to switches and routers, and
// when they ask (MLD, RFC 3810). Groups are not safe for concurrent use.
type Groups struct {
	index   int
	sockets []*groupSocket
	// joined are the sockets by their groups.
	joined map[netip.Addr]*groupSocket
}

// groupSocket has memberships, and hears nothing.
type groupSocket struct {
	fd, members int
	// full: the kernel has refused it one more.
	full bool
}

// NewGroups is none yet, at the interface of that number.
func NewGroups(index int) *Groups {
	return &Groups{index: index, joined: map[netip.Addr]*groupSocket{}}
}

// Len is how many groups are joined.
func (g *Groups) Len() int { return len(g.joined) }

// Has tells whether the group is joined.
func (g *Groups) Has(group netip.Addr) bool { return g.joined[group] != nil }

// Join joins a group, unless that is done.
func (g *Groups) Join(group netip.Addr) error {
	if g.joined[group] != nil {
		return nil
	}
	if len(g.joined) >= MostGroups {
		return ErrTooManyGroups
	}
	for {
		s, err := g.roomy()
		if err != nil {
			return err
		}
		err = g.set(s, unix.IPV6_JOIN_GROUP, group)
		if errors.Is(err, unix.ENOMEM) && s.members > 0 {
			s.full = true
			continue
		}
		if err != nil {
			return fmt.Errorf("join a group: %w", err)
		}
		s.members++
		g.joined[group] = s
		return nil
	}
}

// roomy is a socket that may have room for another membership.
func (g *Groups) roomy() (*groupSocket, error) {
	for _, s := range g.sockets {
		if !s.full {
			return s, nil
		}
	}
	if len(g.sockets) >= mostSockets {
		return nil, errNoRoom
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("join a group: %w", err)
	}
	s := &groupSocket{fd: fd}
	g.sockets = append(g.sockets, s)
	return s, nil
}

func (g *Groups) set(s *groupSocket, option int, group netip.Addr) error {
	return unix.SetsockoptIPv6Mreq(s.fd, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.index)})
}

// Leave leaves a group, if it was joined.
func (g *Groups) Leave(group netip.Addr) {
	s := g.joined[group]
	if s == nil {
		return
	}
	// It fails where the kernel has forgotten the membership with an interface that is gone.
	_ = g.set(s, unix.IPV6_LEAVE_GROUP, group)
	delete(g.joined, group)
	s.members--
	s.full = false
}

// Restore joins those groups again that the kernel has forgotten, as it does when the MTU of an interface falls below 1280 bytes, the least for IPv6. It
// returns those that it could not join, with the last error.
func (g *Groups) Restore() (lost []netip.Addr, err error) {
	if len(g.joined) == 0 {
		return nil, nil
	}
	there, err := memberships(g.index)
	if err != nil {
		return nil, err
	}
	var gone []netip.Addr
	for group := range g.joined {
		if !there[group] {
			gone = append(gone, group)
		}
	}
	for _, group := range gone {
		g.Leave(group)
	}
	for _, group := range gone {
		if failed := g.Join(group); failed != nil {
			lost, err = append(lost, group), failed
		}
	}
	return lost, err
}

// Close leaves all groups.
func (g *Groups) Close() {
	for _, s := range g.sockets {
		_ = unix.Close(s.fd)
	}
	g.sockets = nil
	clear(g.joined)
}

// memberships are the IPv6 groups that this host is a member of at an interface, by whomever.
func memberships(index int) (map[netip.Addr]bool, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETMULTICAST, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfAddrmsg(unix.AF_INET6))
	messages, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, fmt.Errorf("list multicast groups: %w", err)
	}
	groups := map[netip.Addr]bool{}
	for _, m := range messages {
		if len(m) < unix.SizeofIfAddrmsg || int(nl.DeserializeIfAddrmsg(m).Index) != index {
			continue
		}
		attributes, err := nl.ParseRouteAttr(m[unix.SizeofIfAddrmsg:])
		if err != nil {
			return nil, fmt.Errorf("list multicast groups: %w", err)
		}
		for _, a := range attributes {
			if group, ok := netip.AddrFromSlice(a.Value); ok && a.Attr.Type == unix.IFA_MULTICAST {
				groups[group] = true
			}
		}
	}
	return groups, nil
}

// SolicitedNode is the group that is asked for an IPv6 address (RFC 4291 section 2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	low := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: low[13], 14: low[14], 15: low[15]})
}
