package hostflows

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

// ErrCannotEndSockets says that the kernel cannot list or end sockets.
var ErrCannotEndSockets = errors.New("this kernel cannot end a connection of a socket (CONFIG_INET_DIAG_DESTROY, and the module tcp_diag)")

// EndSockets resets the TCP connections that matches selects. Listening sockets are no connections. The error is ErrCannotEndSockets if the kernel cannot.
func EndSockets(matches func(Connection) bool) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := listSockets(family)
		if err != nil {
			return err
		}
		for _, s := range sockets {
			c := Connection{addrPort(s.ID.Source, s.ID.SourcePort), addrPort(s.ID.Destination, s.ID.DestinationPort)}
			if s.State == netlink.TCP_LISTEN || !matches(c) {
				continue
			}
			if err := endSocket(s); err != nil {
				return fmt.Errorf("end the connection from %s to %s: %w", c.Remote, c.Local, err)
			}
		}
	}
	return nil
}

func listSockets(family uint8) ([]*netlink.Socket, error) {
	sockets, err := dumps.Read(func() ([]*netlink.Socket, error) { return netlink.SocketDiagTCP(family) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, ErrCannotEndSockets
	case err != nil:
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	return sockets, nil
}

func endSocket(s *netlink.Socket) error {
	request := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	request.AddData(requestOf(s))
	_, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrCannotEndSockets
	case errors.Is(err, unix.ENOENT): // the connection has ended already
		return nil
	}
	return err
}

// socketRequest is struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h).
type socketRequest [56]byte

// Len returns the length of the request.
func (socketRequest) Len() int { return len(socketRequest{}) }

// Serialize returns the request's bytes.
func (r socketRequest) Serialize() []byte { return r[:] }

// requestOf identifies the socket by its cookie: without it the kernel could end a socket that listens at the address.
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
