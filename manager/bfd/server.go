package bfd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/descriptor"
)

// Port is where control packets go; they come from a port of sourcePorts, with a TTL that no router has touched (RFC 5881, sections 4
// and 5).
const Port = 3784

var sourcePorts = [2]int{49152, 65535}

const untouched = 255

// Options are what a Server needs.
type Options struct {
	// Changed is told when a session came up or went down; it must not block.
	Changed func()
	Log     *slog.Logger
}

// Server keeps sessions. It is safe for concurrent use.
type Server struct {
	options Options

	mu sync.Mutex // one change at a time
	// stopListening ends the listeners, which are there while there are sessions.
	stopListening context.CancelFunc
	listening     sync.WaitGroup

	table    sync.RWMutex // guards sessions, which listeners look up while something changes
	sessions map[netip.Addr]*session
}

type session struct {
	timers  Timers
	heard   chan packet
	mine    uint32
	end     context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex // guards state
	state State
}

// New returns a server without sessions.
func New(o Options) *Server { return &Server{options: o, sessions: map[netip.Addr]*session{}} }

// SetPeers keeps sessions with these neighbours and no others. One whose timers have not changed goes on.
func (s *Server) SetPeers(peers map[netip.Addr]Timers) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for address, has := range s.sessions {
		if is, there := peers[address]; !there || is != has.timers {
			s.drop(address)
		}
	}
	if len(peers) == 0 {
		s.deafen()
		return nil
	}
	if err := s.listen(); err != nil {
		return err
	}
	var errs []error
	for address, timers := range peers {
		if s.sessions[address] == nil {
			errs = append(errs, s.begin(address, timers))
		}
	}
	return errors.Join(errs...)
}

// Up tells whether a neighbour is heard, and hears this host.
func (s *Server) Up(address netip.Addr) bool {
	k := s.of(address)
	return k != nil && k.is() == Up
}

func (s *Server) of(address netip.Addr) *session {
	s.table.RLock()
	defer s.table.RUnlock()
	return s.sessions[address]
}

// put puts a session in its place, or removes it.
func (s *Server) put(address netip.Addr, k *session) {
	s.table.Lock()
	defer s.table.Unlock()
	if k == nil {
		delete(s.sessions, address)
		return
	}
	s.sessions[address] = k
}

// Close ends all sessions.
func (s *Server) Close() {
	_ = s.SetPeers(nil)
}

// drop ends a session; mu is held.
func (s *Server) drop(address netip.Addr) {
	k := s.of(address)
	s.put(address, nil)
	k.end()
	k.running.Wait()
}

// begin begins a session; mu is held.
func (s *Server) begin(address netip.Addr, timers Timers) error {
	conn, err := dial(address)
	if err != nil {
		return fmt.Errorf("BFD with %s: %w", address, err)
	}
	v := &voice{address: address, conn: conn, looked: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	k := &session{timers: timers, heard: make(chan packet, 8), mine: 1 + rand.Uint32N(1<<32-1), end: cancel, state: Down}
	s.put(address, k)
	k.running.Go(func() {
		defer v.close()
		k.run(ctx, v, s.options.Changed)
	})
	return nil
}

// dial is a socket that speaks to the neighbour.
func dial(address netip.Addr) (*net.UDPConn, error) {
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, Port))
	var err error
	for range 20 { // others have ports of the range, too
		var conn *net.UDPConn
		if conn, err = net.DialUDP("udp", &net.UDPAddr{Port: sourcePorts[0] + rand.IntN(sourcePorts[1]-sourcePorts[0]+1)}, to); err == nil {
			return conn, errors.Join(descriptor.With(conn, func(fd int) error {
				if address.Is4() {
					return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, untouched)
				}
				return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, untouched)
			}))
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, err
}

// listen hears both families; mu is held.
func (s *Server) listen() error {
	if s.stopListening != nil {
		return nil
	}
	var sockets []*net.UDPConn
	for _, f := range []struct {
		network       string
		level, option int
	}{{"udp4", unix.IPPROTO_IP, unix.IP_MINTTL}, {"udp6", unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT}} {
		conn, err := net.ListenUDP(f.network, &net.UDPAddr{Port: Port})
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // a host without that family has no neighbours in it
		}
		if err == nil {
			err = descriptor.With(conn, func(fd int) error { return unix.SetsockoptInt(fd, f.level, f.option, untouched) })
			sockets = append(sockets, conn)
		}
		if err != nil {
			for _, opened := range sockets {
				opened.Close()
			}
			return fmt.Errorf("BFD: %w (does another BFD daemon run on this host?)", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stopListening = cancel
	for _, conn := range sockets {
		s.listening.Go(func() { s.hear(conn) })
		s.listening.Go(func() {
			<-ctx.Done()
			conn.Close()
		})
	}
	return nil
}

// deafen ends the listeners; mu is held.
func (s *Server) deafen() {
	if s.stopListening == nil {
		return
	}
	s.stopListening()
	s.stopListening = nil
	s.listening.Wait()
}

// hear hands packets to their sessions until the socket is closed.
func (s *Server) hear(conn *net.UDPConn) {
	buffer := make([]byte, 256)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // such as an ICMP error that some packet met
		}
		p, err := parse(buffer[:n])
		if err != nil {
			s.options.Log.Debug("a BFD packet that is none", "from", from, "error", err)
			continue
		}
		k := s.of(from.Addr().Unmap())
		if k == nil || !proves(p, k.mine, k.is()) {
			continue // for another one, or a session of before, or forged: it must not take the room of those that count
		}
		select {
		case k.heard <- p:
		default: // who floods is not heard better by that
		}
	}
}

func (k *session) is() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// run keeps the session until ctx ends, and says then that this is no failure.
func (k *session) run(ctx context.Context, v *voice, changed func()) {
	m := newMachine(k.timers, k.mine)
	speak, detect := time.NewTimer(0), time.NewTimer(time.Hour)
	detect.Stop()
	defer speak.Stop()
	defer detect.Stop()
	speaks := true
	send := func(p packet) { v.say(p, time.Now()) }
	for {
		select {
		case <-ctx.Done():
			m.state, m.diagnostic, m.polling = AdminDown, administrative, false
			send(m.say())
			return
		case p := <-k.heard:
			before := m.state
			answer, heeded := m.hear(p)
			if !heeded {
				continue
			}
			if answer != nil {
				send(*answer)
			}
			detect.Reset(m.patience())
			if m.state != before || !speaks && m.minRx > 0 {
				speaks = true
				speak.Reset(0) // the other side waits for that
			}
		case <-detect.C:
			m.silence()
		case <-speak.C:
			send(m.say())
			pause := m.pause()
			if speaks = pause > 0; speaks {
				speak.Reset(pause)
			}
		}
		k.mu.Lock()
		before := k.state
		k.state = m.state
		k.mu.Unlock()
		if (before == Up) != (m.state == Up) {
			changed()
		}
	}
}
