package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// forgetOlder removes what this host still knows of older connections between the same ports, from before the programs took over:
// entries of connection tracking, and sockets that a proxy left, which may linger for a minute after their end. Both would take
// packets of these connections for strays of the older ones, and leave their clients without an answer that these understand.
func forgetOlder(connections map[tuple]bool) error {
	var errs []error
	for _, kind := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, kind, sameTuple{connections})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("conntrack: %w", err))
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		errs = append(errs, destroySockets(family, connections))
	}
	return errors.Join(errs...)
}

// sameTuple matches the entries to delete.
type sameTuple struct{ connections map[tuple]bool }

var _ netlink.CustomConntrackFilter = sameTuple{}

// MatchConntrackFlow reports whether the flow has the ports and addresses of one of the connections.
func (f sameTuple) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, to := plainAddress(flow.Forward.SrcIP), plainAddress(flow.Forward.DstIP)
	return f.connections[tuple{Source: addressOf(from), Destination: addressOf(to), SourcePort: portOf(flow.Forward.SrcPort), DestinationPort: portOf(flow.Forward.DstPort),
		Protocol: flow.Forward.Protocol, Family: familyOf(from)}]
}

func plainAddress(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// destroySockets closes the sockets that have the ports and addresses of one of the connections. Listening ones never do.
func destroySockets(family uint8, connections map[tuple]bool) error {
	sockets, err := netlink.SocketDiagTCP(family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list sockets: %w", err)
	}
	for _, s := range sockets {
		from, to := plainAddress(s.ID.Destination), plainAddress(s.ID.Source)
		if !connections[tuple{Source: addressOf(from), Destination: addressOf(to), SourcePort: portOf(s.ID.DestinationPort), DestinationPort: portOf(s.ID.SourcePort),
			Protocol: unix.IPPROTO_TCP, Family: familyOf(from)}] {
			continue
		}
		request := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
		request.AddData(requestOf(s))
		_, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // a kernel without CONFIG_INET_DIAG_DESTROY: what lingers ends by itself
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("end the socket of %s at %s: %w", from, to, err)
		}
	}
	return nil
}

// socketRequest is struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h).
type socketRequest [56]byte

// Len returns the length of the request.
func (socketRequest) Len() int { return len(socketRequest{}) }

// Serialize returns the request's bytes.
func (r socketRequest) Serialize() []byte { return r[:] }

// requestOf names exactly this socket, by its cookie: the kernel would take one that listens there for it.
func requestOf(s *netlink.Socket) (r socketRequest) {
	r[0], r[1] = s.Family, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(r[8:], s.ID.SourcePort)
	binary.BigEndian.PutUint16(r[10:], s.ID.DestinationPort)
	local, remote := s.ID.Source, s.ID.Destination
	if s.Family == unix.AF_INET {
		local, remote = local.To4(), remote.To4()
	}
	copy(r[12:], local)
	copy(r[28:], remote)
	binary.NativeEndian.PutUint32(r[44:], s.ID.Interface)
	binary.NativeEndian.PutUint32(r[48:], s.ID.Cookie[0])
	binary.NativeEndian.PutUint32(r[52:], s.ID.Cookie[1])
	return r
}
