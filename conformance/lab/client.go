package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Answer has the addresses that a server saw.
type Answer struct {
	// Endpoint is the server's address, Client the client's address.
	Endpoint netip.Addr
	Client   netip.AddrPort
}

// From is the source of a flow. With the zero value, the host selects address and port.
type From struct {
	Address netip.Addr
	Port    uint16
}

// Ports that a host selects in turn. The kernel selects ports at random, so it may select the port of a recent UDP flow,
// which would then continue.
const firstPort, ports = 32768, 28000

// begin returns the source of a new flow, with a port for UDP.
func (h *Host) begin(network string, from From) From {
	if network == "udp" && from.Port == 0 {
		from.Port = uint16(firstPort + (h.datagrams.Add(1)-1)%ports)
	}
	return from
}

// Dial opens a connection from the host. network is tcp or udp.
func (h *Host) Dial(network string, to netip.AddrPort, from From) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() error {
		var err error
		c, err = dial(network, to, h.begin(network, from), h.patience.For(lostAfter))
		return err
	})
	return c, err
}

func dial(network string, to netip.AddrPort, from From, wait time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: wait}
	if from != (From{}) {
		// The kernel keeps a used port for stray segments. A case that reuses a port knows that there are none.
		dialer.Control = reuseAddress
		local := netip.AddrPortFrom(from.Address, from.Port)
		if network == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(local)
		} else {
			dialer.LocalAddr = net.TCPAddrFromAddrPort(local)
		}
	}
	return dialer.DialContext(context.Background(), network, to.String())
}

func reuseAddress(_, _ string, socket syscall.RawConn) error {
	var failed error
	err := socket.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, failed)
}

// Request makes a new flow and returns the server's answer.
func (h *Host) Request(network string, to netip.AddrPort, from From) (Answer, error) {
	answers, err := h.RequestFromEach(network, to, []From{from})
	if err != nil {
		return Answer{}, err
	}
	return answers[0], nil
}

// RequestTimes makes n new flows, one after another.
func (h *Host) RequestTimes(n int, network string, to netip.AddrPort) ([]Answer, error) {
	return h.RequestFromEach(network, to, make([]From, n))
}

// RequestFromEach makes a new flow from each source, one after another.
func (h *Host) RequestFromEach(network string, to netip.AddrPort, froms []From) ([]Answer, error) {
	answers := make([]Answer, 0, len(froms))
	err := h.Do(func() error {
		for _, from := range froms {
			answer, err := ask(network, to, h.begin(network, from), h.patience.For(lostAfter))
			if err != nil {
				return fmt.Errorf("%s %s, flow %d: %w", network, to, len(answers)+1, err)
			}
			answers = append(answers, answer)
		}
		return nil
	})
	return answers, err
}

func ask(network string, to netip.AddrPort, from From, wait time.Duration) (Answer, error) {
	c, err := dial(network, to, from, wait)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	answer, err := who(c, wait)
	if t, ok := c.(*net.TCPConn); ok && err == nil && from.Port != 0 {
		// A reset leaves no TIME_WAIT, so that the port can be reused at once. The reset waits for the server's FIN: if they
		// crossed, connection tracking would keep an entry that seems to belong to another connection.
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			return answer, fmt.Errorf("the server did not end the connection: %w", err)
		}
		return answer, reset(t)
	}
	return answer, err
}

// RequestAddresses asks the server for the addresses that it sees. Nothing may have been sent on a TCP connection before.
func RequestAddresses(c net.Conn, p Patience) (Answer, error) { return who(c, p.For(lostAfter)) }

// RequestAddressesAgain asks like RequestAddresses on a UDP flow that may lose a datagram, or whose socket has an ICMP error to report.
func RequestAddressesAgain(c net.Conn, p Patience) (answer Answer, err error) {
	for try := range tries {
		if answer, err = who(c, p.For(firstTry<<try)); err == nil {
			break
		}
	}
	return answer, err
}

func who(c net.Conn, wait time.Duration) (Answer, error) {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return Answer{}, err
	}
	question := askWho
	if c.RemoteAddr().Network() == "tcp" {
		question += "\n"
	}
	if _, err := c.Write([]byte(question)); err != nil {
		return Answer{}, err
	}
	buffer := make([]byte, 256)
	line := ""
	if c.RemoteAddr().Network() == "tcp" {
		var err error
		if line, err = bufio.NewReader(c).ReadString('\n'); err != nil {
			return Answer{}, err
		}
	} else {
		n, err := c.Read(buffer)
		if err != nil {
			return Answer{}, err
		}
		line = string(buffer[:n])
	}
	return parseAnswer(line)
}

func parseAnswer(line string) (Answer, error) {
	endpoint, client, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	address, err := netip.ParseAddr(endpoint)
	if err != nil {
		return Answer{}, fmt.Errorf("the server answered %q: %w", line, err)
	}
	at, err := netip.ParseAddrPort(client)
	return Answer{address, at}, err
}

// Refusal describes the end of a flow that was not served.
type Refusal struct {
	// Outright means that a reset or an ICMP error answered the first packet, Ended that the connection was established and
	// then ended. If both are false, the client got no answer.
	Outright, Ended bool
	After           time.Duration
	Err             error
}

// Refused makes a flow that should be refused. Err is nil if the flow is served.
func (h *Host) Refused(network string, to netip.AddrPort) Refusal {
	begin := time.Now()
	_, err := h.Request(network, to, From{})
	return Refusal{errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF), time.Since(begin), err}
}

// Silent reports whether a flow gets no answer at all.
func (h *Host) Silent(network string, to netip.AddrPort) bool {
	err := h.Do(func() error {
		_, err := ask(network, to, h.begin(network, From{}), h.patience.For(silentAfter))
		return err
	})
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// AnsweredWithin makes a new flow and reports whether it is answered within that time.
func (h *Host) AnsweredWithin(wait time.Duration, network string, to netip.AddrPort) bool {
	return h.Do(func() error {
		_, err := ask(network, to, h.begin(network, From{}), wait)
		return err
	}) == nil
}

// Unanswered sends a request on a UDP flow and reports whether there is no answer, or an ICMP error.
func Unanswered(c net.Conn, p Patience) bool {
	_, err := who(c, p.For(silentAfter))
	return err != nil
}

// AnsweredOnce sends a request on a UDP flow, once, and waits that long for the answer.
func AnsweredOnce(c net.Conn, wait time.Duration) error {
	_, err := who(c, wait)
	return err
}

// Send sends a request on a UDP flow and does not wait for the answer.
func Send(c net.Conn) { _, _ = c.Write([]byte(askWho)) }

// Stream is a TCP connection to a server that echoes.
type Stream struct {
	net.Conn
	echoed   *bufio.Reader
	patience Patience
}

// Stream opens a stream.
func (h *Host) Stream(to netip.AddrPort, from From) (*Stream, error) {
	c, err := h.Dial("tcp", to, from)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte(askEcho + "\n")); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	s := &Stream{c, bufio.NewReader(c), h.patience}
	return s, s.Alive()
}

// Alive sends a line and waits for it to come back.
func (s *Stream) Alive() error {
	if err := s.SetDeadline(time.Now().Add(s.patience.For(lostAfter))); err != nil {
		return err
	}
	if _, err := s.Write([]byte("alive\n")); err != nil {
		return err
	}
	line, err := s.echoed.ReadString('\n')
	if err != nil {
		return err
	}
	if line != "alive\n" {
		return fmt.Errorf("sent %q, received %q", "alive\n", line)
	}
	return nil
}

// Reset closes the connection with a reset.
func (s *Stream) Reset() error {
	tcp, ok := s.Conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("a stream over %T", s.Conn)
	}
	return errors.Join(reset(tcp), tcp.Close())
}

// Vanish ends the connection without a packet, so that the server does not notice. A socket in repair mode does that
// (TCP_REPAIR in tcp(7)).
func (s *Stream) Vanish() error {
	tcp, ok := s.Conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("a stream over %T", s.Conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var repaired error
	err = raw.Control(func(fd uintptr) { repaired = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	if err := errors.Join(err, repaired); err != nil {
		return fmt.Errorf("end a connection without a packet: %w", err)
	}
	return errors.Join(reset(tcp), tcp.Close())
}

// reset ends the connection with a reset at once. Close is not enough: a child process that another goroutine starts has a
// copy of the socket until it executes its program, and the port stays taken until then. A connect with AF_UNSPEC dissolves
// the connection (connect(2)).
func reset(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		nobody := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		if _, _, errno := unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&nobody)), unsafe.Sizeof(nobody)); errno != 0 {
			failed = fmt.Errorf("reset a connection: %w", errno)
		}
	})
	return errors.Join(err, failed)
}

// Sockets describes the host's TCP sockets of both families, for messages. States are numbers (include/net/tcp_states.h). An
// error is the last element.
func (h *Host) Sockets() []string {
	var out []string
	err := h.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return err
			}
			for _, s := range sockets {
				out = append(out, fmt.Sprintf("%s:%d-%s:%d state %d", s.ID.Source, s.ID.SourcePort, s.ID.Destination, s.ID.DestinationPort, s.State))
			}
		}
		return nil
	})
	if err != nil {
		out = append(out, err.Error())
	}
	return out
}

// Transfer uploads n bytes, downloads n bytes on another connection, and compares checksums.
func (h *Host) Transfer(to netip.AddrPort, n int64) error {
	if err := h.upload(to, n); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if err := h.download(to, n); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	return nil
}
