package lab

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bits of the sysctl tcp_fastopen (Documentation/networking/ip-sysctl.rst): a client sends data in its SYN, and all servers take it.
const fastOpenClient, fastOpenServers = "1", "1027"

// AllowFastOpen lets hosts use TCP Fast Open (RFC 7413). It affects servers that begin to listen later.
func AllowFastOpen(client, server *Host) error {
	return errors.Join(client.Sysctl("net/ipv4/tcp_fastopen", fastOpenClient), server.Sysctl("net/ipv4/tcp_fastopen", fastOpenServers))
}

// RequestFastOpen is like Request over TCP. The request is in the SYN if the host has a cookie of the server, as it has after its first connection.
func (h *Host) RequestFastOpen(to netip.AddrPort) (answer Answer, err error) {
	control := func(_, _ string, socket syscall.RawConn) error {
		var failed error
		err := socket.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
		})
		return errors.Join(err, failed)
	}
	err = h.Do(func() error {
		dialer := net.Dialer{Control: control, Timeout: h.patience.For(lostAfter)}
		c, err := dialer.Dial("tcp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		answer, err = who(c, h.patience.For(lostAfter))
		return err
	})
	return answer, err
}

// FastOpened returns how many of the host's connections had data in their SYN that the server acknowledged at once.
func (h *Host) FastOpened() (n int, err error) {
	err = h.Do(func() error {
		n, err = readCounter("netstat", "TcpExt", "TCPFastOpenActive")
		return err
	})
	return n, err
}
