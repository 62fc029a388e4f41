package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The commands of a client, on the first line of a connection.
const (
	// askWho: the server answers "<endpoint> <client>", the addresses that it sees.
	askWho = "who"
	// askEcho: the server echoes everything that follows.
	askEcho = "echo"
	// askSum: after the client's FIN, the server answers with length and CRC-32 of what it received.
	askSum = "sum"
	// askSend N: the server sends N bytes.
	askSend = "send"
	// askReset: the server resets the connection.
	askReset = "reset"
	// askLate N: after the client's FIN, the server waits for N milliseconds, and answers with the number of bytes that it
	// received.
	askLate = "late"
	// askTrickle N: after the client's FIN, the server sends single bytes for N milliseconds.
	askTrickle = "trickle"
)

// trickleInterval is the interval between the bytes of askTrickle.
const trickleInterval = 200 * time.Millisecond

// Server listens on a port of a host, and counts the connections that it accepts.
type Server struct {
	// proxied means that every connection begins with a PROXY protocol header.
	proxied  bool
	listener net.Listener
	packets  []net.PacketConn

	mu       sync.Mutex
	open     map[net.Conn]bool
	accepted int
	counts   map[netip.Addr]int
	counted  atomic.Int64
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
		// A wildcard UDP socket would answer from the address of the route, not from the destination of the datagram.
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
		go s.answerDatagrams(p)
	}
	return s, nil
}

// ServeProxied answers on a TCP port of all the host's addresses. Every connection must begin with a PROXY protocol header of
// version 2. The answers have the client of the header.
func (h *Host) ServeProxied(port uint16) (*Server, error) {
	s := &Server{open: map[net.Conn]bool{}, proxied: true}
	err := h.Do(func() error {
		var err error
		s.listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve port %d on %s: %w", port, h.Name, err)
	}
	go s.accept()
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

// Accepted returns the number of TCP connections that the server has accepted.
func (s *Server) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Open returns the number of open TCP connections.
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
		s.count(plainAddrPort(c.LocalAddr()).Addr())
		s.mu.Lock()
		s.accepted++
		s.open[c] = true
		s.mu.Unlock()
		go func() {
			s.serveConn(c.(*net.TCPConn))
			s.mu.Lock()
			delete(s.open, c)
			s.mu.Unlock()
		}()
	}
}

func (s *Server) serveConn(c *net.TCPConn) {
	defer c.Close()
	in := bufio.NewReaderSize(c, 64<<10)
	client := plainAddrPort(c.RemoteAddr())
	if s.proxied {
		var err error
		if client, err = readProxyHeader(in); err != nil {
			fmt.Fprintln(c, err) // the client cannot parse this as an answer, and shows it in its error
			return
		}
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	command, argument, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	switch command {
	case askWho:
		fmt.Fprintln(c, identity(c.LocalAddr(), client))
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
	case askTrickle:
		_, _ = io.Copy(io.Discard, in)
		lasts, _ := strconv.Atoi(argument)
		for begin := time.Now(); time.Since(begin) < time.Duration(lasts)*time.Millisecond; time.Sleep(trickleInterval) {
			if _, err := c.Write([]byte{'.'}); err != nil {
				return
			}
		}
	case askReset:
		_ = c.SetLinger(0)
	}
}

func identity(local net.Addr, client netip.AddrPort) string {
	return plainAddrPort(local).Addr().String() + " " + client.String()
}

// proxySignature is the first part of a header of version 2 (the PROXY protocol, section 2.2).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// readProxyHeader returns the client that the header of a TCP connection names.
func readProxyHeader(in io.Reader) (netip.AddrPort, error) {
	head := make([]byte, len(proxySignature)+4)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(proxySignature)]) != proxySignature {
		return netip.AddrPort{}, fmt.Errorf("want a PROXY protocol header, got %q: %v", head, err)
	}
	// Version 2 and command PROXY; TCP over IPv4 or IPv6; the number of bytes that follow.
	version, transport := head[len(proxySignature)], head[len(proxySignature)+1]
	rest := make([]byte, binary.BigEndian.Uint16(head[len(proxySignature)+2:]))
	if _, err := io.ReadFull(in, rest); err != nil {
		return netip.AddrPort{}, err
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[transport]
	if version != 0x21 || size == 0 || len(rest) < 2*size+4 {
		return netip.AddrPort{}, fmt.Errorf("PROXY protocol header %x %x with %d bytes", version, transport, len(rest))
	}
	address, _ := netip.AddrFromSlice(rest[:size])
	return netip.AddrPortFrom(address, binary.BigEndian.Uint16(rest[2*size:])), nil
}

func plainAddrPort(a net.Addr) netip.AddrPort {
	at, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// answerDatagrams answers askWho like a TCP server does, counts askCount, and echoes all other datagrams.
func (s *Server) answerDatagrams(p net.PacketConn) {
	local := plainAddrPort(p.LocalAddr()).Addr()
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFrom(buffer)
		if err != nil {
			return
		}
		answer := buffer[:n]
		if string(answer) == askCount {
			s.count(local)
			continue
		}
		if string(answer) == askWho {
			answer = []byte(identity(p.LocalAddr(), plainAddrPort(from)))
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

// lostAfter is the time after which anything in the lab counts as lost. A host sends three neighbour solicitations, a second apart
// (RFC 4861, section 10), and on a busy machine the first one may be lost.
const lostAfter = 4 * time.Second

// silentAfter is the time without an answer after which there is none. The network of the lab answers within a millisecond.
const silentAfter = 700 * time.Millisecond
