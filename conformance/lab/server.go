package lab

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What a client may ask a server for, on the first line of a connection.
const (
	// askWho is answered with "<endpoint> <client>", the addresses as the server sees them.
	askWho = "who"
	// askEcho begins an echo of all that follows.
	askEcho = "echo"
	// askSum is answered, when the client has sent everything and half-closed, with length and CRC-32 of what came.
	askSum = "sum"
	// askSend is followed by a number of bytes, which the server sends.
	askSend = "send"
	// askReset is answered with a reset.
	askReset = "reset"
	// askLate is followed by milliseconds: when the client has half-closed the server waits that long, and then tells how
	// many bytes came.
	askLate = "late"
)

// Server is what listens on a host's port. It counts what it accepts.
type Server struct {
	listener net.Listener
	packets  []net.PacketConn

	mu       sync.Mutex
	open     map[net.Conn]bool
	accepted int
}

// Serve answers on a TCP and a UDP port of all the host's addresses until the server is closed.
func (h *Host) Serve(port uint16) (*Server, error) {
	s := &Server{open: map[net.Conn]bool{}}
	err := h.Do(func() error {
		var err error
		if s.listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		addresses, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		// A wildcard UDP socket would answer from the address of the route, not from the one that was asked.
		for _, a := range addresses {
			ip, ok := a.(*net.IPNet)
			if !ok || !ip.IP.IsGlobalUnicast() {
				continue
			}
			packets, err := net.ListenPacket("udp", net.JoinHostPort(ip.IP.String(), fmt.Sprint(port)))
			if err != nil {
				return err
			}
			s.packets = append(s.packets, packets)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve port %d on %s: %w", port, h.Name, err), s.Close())
	}
	go s.accept()
	for _, p := range s.packets {
		go answerDatagrams(p)
	}
	return s, nil
}

// Close stops listening and ends all connections.
func (s *Server) Close() error {
	var errs []error
	if s.listener != nil {
		errs = append(errs, s.listener.Close())
	}
	for _, p := range s.packets {
		errs = append(errs, p.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Close()
	}
	return errors.Join(errs...)
}

// Accepted is how many TCP connections came.
func (s *Server) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Open is how many TCP connections there are now.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.accepted++
		s.open[c] = true
		s.mu.Unlock()
		go func() {
			serveConn(c.(*net.TCPConn))
			s.mu.Lock()
			delete(s.open, c)
			s.mu.Unlock()
		}()
	}
}

func serveConn(c *net.TCPConn) {
	defer c.Close()
	in := bufio.NewReaderSize(c, 64<<10)
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	command, argument, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	switch command {
	case askWho:
		fmt.Fprintln(c, identity(c.LocalAddr(), c.RemoteAddr()))
	case askEcho:
		_, _ = io.Copy(c, in)
	case askSum:
		sum := crc32.NewIEEE()
		n, _ := io.Copy(sum, in)
		fmt.Fprintf(c, "%d %08x\n", n, sum.Sum32())
	case askSend:
		n, _ := strconv.ParseInt(argument, 10, 64)
		_, _ = io.CopyN(c, &Pattern{}, n)
	case askLate:
		n, _ := io.Copy(io.Discard, in)
		pause, _ := strconv.Atoi(argument)
		time.Sleep(time.Duration(pause) * time.Millisecond)
		fmt.Fprintln(c, n)
	case askReset:
		_ = c.SetLinger(0)
	}
}

func identity(local, remote net.Addr) string {
	return plainAddrPort(local).Addr().String() + " " + plainAddrPort(remote).String()
}

func plainAddrPort(a net.Addr) netip.AddrPort {
	at, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// answerDatagrams answers "who" like TCP does, and echoes anything else.
func answerDatagrams(p net.PacketConn) {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFrom(buffer)
		if err != nil {
			return
		}
		answer := buffer[:n]
		if string(answer) == askWho {
			answer = []byte(identity(p.LocalAddr(), from))
		}
		_, _ = p.WriteTo(answer, from)
	}
}

// Pattern is an endless stream of bytes that does not repeat within a segment.
type Pattern struct{ state uint32 }

// Read fills p.
func (r *Pattern) Read(p []byte) (int, error) {
	for i := range p {
		r.state = r.state*1664525 + 1013904223
		p[i] = byte(r.state >> 24)
	}
	return len(p), nil
}

// patience is how long anything in the lab may take before it counts as lost.
const patience = 2 * time.Second

// silence is how long nothing comes before that counts as no answer, on a network that answers within a millisecond.
const silence = 700 * time.Millisecond
