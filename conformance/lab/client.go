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

// Answer is what a server saw.
type Answer struct {
	// Endpoint is the address at which the server was reached, Client whom it saw.
	Endpoint netip.Addr
	Client   netip.AddrPort
}

// From is where a flow begins; its zero value leaves all to the host.
type From struct {
	Address netip.Addr
	Port    uint16
}

// Ports that a host gives out itself, in turn: one that the kernel takes by chance may be that of a UDP flow of a moment ago, which
// goes on then instead of being new.
const firstPort, ports = 32768, 28000

// begin says where a new flow begins that may leave it to the host.
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
		c, err = dial(network, to, h.begin(network, from), h.patience.For(lost))
		return err
	})
	return c, err
}

func dial(network string, to netip.AddrPort, from From, wait time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: wait}
	if from != (From{}) {
		// A port that has just been used waits for stray segments; a case that reuses one knows that there are none.
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

// Ask makes a new flow and returns who answered.
func (h *Host) Ask(network string, to netip.AddrPort, from From) (Answer, error) {
	answers, err := h.AskMany(network, to, []From{from})
	if err != nil {
		return Answer{}, err
	}
	return answers[0], nil
}

// AskTimes makes n new flows, one after another.
func (h *Host) AskTimes(n int, network string, to netip.AddrPort) ([]Answer, error) {
	return h.AskMany(network, to, make([]From, n))
}

// AskMany makes a new flow from each place, one after another.
func (h *Host) AskMany(network string, to netip.AddrPort, froms []From) ([]Answer, error) {
	answers := make([]Answer, 0, len(froms))
	err := h.Do(func() error {
		for _, from := range froms {
			answer, err := ask(network, to, h.begin(network, from), h.patience.For(lost))
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
		// A reset at the end leaves no TIME_WAIT, so that the port can be used again at once. Only after the server's end:
		// passing it on the way, the reset would leave a connection in conntrack that seems to be another one's.
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			return answer, fmt.Errorf("the server was to end the connection: %w", err)
		}
		return answer, reset(t)
	}
	return answer, err
}

// Who asks over a connection whose first line has not been sent yet, and over any UDP flow.
func Who(c net.Conn, p Patience) (Answer, error) { return who(c, p.For(lost)) }

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
		return Answer{}, fmt.Errorf("server says %q: %w", line, err)
	}
	at, err := netip.ParseAddrPort(client)
	return Answer{address, at}, err
}

// Refusal is how a flow ended that was not served.
type Refusal struct {
	// Outright: a reset answered the first packet, or an ICMP error. Ended: the connection came about and was then ended.
	// Neither of them is silence.
	Outright, Ended bool
	After           time.Duration
	Err             error
}

// Refused makes a flow that is to be refused. Err is nil when it is served.
func (h *Host) Refused(network string, to netip.AddrPort) Refusal {
	begin := time.Now()
	_, err := h.Ask(network, to, From{})
	return Refusal{errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF), time.Since(begin), err}
}

// Silent reports whether a flow gets no answer at all.
func (h *Host) Silent(network string, to netip.AddrPort) bool {
	err := h.Do(func() error {
		_, err := ask(network, to, h.begin(network, From{}), h.patience.For(silence))
		return err
	})
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// AnsweredWithin makes a new flow and reports whether it is served, all of it within that time.
func (h *Host) AnsweredWithin(wait time.Duration, network string, to netip.AddrPort) bool {
	return h.Do(func() error {
		_, err := ask(network, to, h.begin(network, From{}), wait)
		return err
	}) == nil
}

// Unanswered asks on a UDP flow and reports whether nothing comes back, be it silence or an ICMP error.
func Unanswered(c net.Conn, p Patience) bool {
	_, err := who(c, p.For(silence))
	return err != nil
}

// Send asks on a UDP flow and does not wait for an answer.
func Send(c net.Conn) { _, _ = c.Write([]byte(askWho)) }

// Stream is a TCP connection whose server echoes.
type Stream struct {
	net.Conn
	echoed   *bufio.Reader
	patience Patience
}

// Stream opens a connection that lives until it is closed.
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
	if err := s.SetDeadline(time.Now().Add(s.patience.For(lost))); err != nil {
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
		return fmt.Errorf("sent %q, came back %q", "alive\n", line)
	}
	return nil
}

// Reset closes the connection by a reset.
func (s *Stream) Reset() error {
	tcp, ok := s.Conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("a stream over %T", s.Conn)
	}
	return errors.Join(reset(tcp), tcp.Close())
}

// Vanish ends the connection without a packet: its peer does not hear of it. A socket in repair mode forgets (tcp_repair in tcp(7)).
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
		return fmt.Errorf("have a connection vanish: %w", err)
	}
	return errors.Join(reset(tcp), tcp.Close())
}

// reset ends the connection by a reset, at once. To close it would not do: a child that another goroutine is about to start has a copy of
// it until it runs its program, and as long the port is taken. Connecting a socket to no address dissolves its association (connect(2)).
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

// Sockets lists the host's TCP sockets of both families, with the number of their state (include/net/tcp_states.h), or says why it
// cannot: it is for messages.
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

// Transfer sends n bytes to a server that sums them up, and then has it send n bytes back on another connection.
func (h *Host) Transfer(to netip.AddrPort, n int64) error {
	if err := h.upload(to, n); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if err := h.download(to, n); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	return nil
}
