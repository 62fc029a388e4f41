package uplink

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

// MaxGroups is the greatest number of multicast groups that Groups joins at an interface. The kernel searches all groups of an interface for each packet
// to a group and for each join: to join this many groups takes half a second, four times as many fifteen seconds. Switches have similar limits: a Linux
// bridge stops snooping at 4096 (mcast_hash_max).
const MaxGroups = 4096

// maxSockets bounds the number of sockets. The kernel counts 56 bytes for each membership against the limit of a socket (sysctl
// net.core.optmem_max): a socket can have 365 memberships with 20480 bytes, the default before Linux 6.8.
const maxSockets = 64

var (
	// ErrTooManyGroups is the error of a group beyond MaxGroups.
	ErrTooManyGroups = fmt.Errorf("the interface has the most groups that are joined, %d", MaxGroups)
	errNoRoom        = fmt.Errorf("%d sockets cannot join another group: set sysctl net.core.optmem_max to 131072", maxSockets)
)

// Groups are the IPv6 multicast groups of this process at an interface. The kernel reports the memberships to switches and routers (MLD, RFC 3810).
// Groups are not safe for concurrent use.
type Groups struct {
	index   int
	sockets []*groupSocket
	// joined has the socket of each joined group.
	joined map[netip.Addr]*groupSocket
}

// groupSocket is a socket with memberships. It receives nothing.
type groupSocket struct {
	fd, members int
	// full: the kernel has refused another membership.
	full bool
}

// NewGroups returns Groups without memberships, for the interface with this index.
func NewGroups(index int) *Groups {
	return &Groups{index: index, joined: map[netip.Addr]*groupSocket{}}
}

// Len returns the number of joined groups.
func (g *Groups) Len() int { return len(g.joined) }

// Has reports whether the group is joined.
func (g *Groups) Has(group netip.Addr) bool { return g.joined[group] != nil }

// Join joins a group, unless it is joined already.
func (g *Groups) Join(group netip.Addr) error {
	if g.joined[group] != nil {
		return nil
	}
	if len(g.joined) >= MaxGroups {
		return ErrTooManyGroups
	}
	for {
		s, err := g.freeSocket()
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

// freeSocket returns a socket that may accept another membership.
func (g *Groups) freeSocket() (*groupSocket, error) {
	for _, s := range g.sockets {
		if !s.full {
			return s, nil
		}
	}
	if len(g.sockets) >= maxSockets {
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

// Leave leaves a group, if it is joined.
func (g *Groups) Leave(group netip.Addr) {
	s := g.joined[group]
	if s == nil {
		return
	}
	// This fails if the kernel has dropped the membership, for example because the interface is gone.
	_ = g.set(s, unix.IPV6_LEAVE_GROUP, group)
	delete(g.joined, group)
	s.members--
	s.full = false
}

// Restore joins groups again that the kernel has dropped, for example because the MTU of the interface was below 1280 bytes, the minimum for IPv6. It
// returns the groups that it could not join, with the last error.
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

// memberships returns the IPv6 groups of this host at an interface, of all programs.
func memberships(index int) (map[netip.Addr]bool, error) {
	messages, err := dumps.Read(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETMULTICAST, unix.NLM_F_DUMP)
		request.AddData(nl.NewIfAddrmsg(unix.AF_INET6))
		return request.Execute(unix.NETLINK_ROUTE, 0)
	})
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

// SolicitedNode returns the solicited-node multicast group of an IPv6 address (RFC 4291 section 2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	low := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: low[13], 14: low[14], 15: low[15]})
}
