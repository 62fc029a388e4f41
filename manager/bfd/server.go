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

// Port is the destination port of control packets. They come from a port in sourcePorts, with a TTL of 255, which no router has decremented (RFC 5881,
// sections 4 and 5).
const Port = 3784

var sourcePorts = [2]int{49152, 65535}

const maxTTL = 255

// Options configure a Server.
type Options struct {
	// Changed is called when a session comes up or goes down. It must not block.
	Changed func()
	Log     *slog.Logger
}

// Server keeps sessions. It is safe for concurrent use.
type Server struct {
	options Options

	mu sync.Mutex // one change at a time
	// stopListening ends the listeners. It is nil while there are no sessions.
	stopListening context.CancelFunc
	listening     sync.WaitGroup

	table    sync.RWMutex // guards sessions, which listeners look up during a change
	sessions map[netip.Addr]*session
}

type session struct {
	timers   Timers
	received chan packet
	mine     uint32
	end      context.CancelFunc
	running  sync.WaitGroup

	mu    sync.Mutex // guards state
	state State
}

// New returns a server without sessions.
func New(o Options) *Server { return &Server{options: o, sessions: map[netip.Addr]*session{}} }

// SetPeers sets the neighbours with sessions. A session whose timers have not changed goes on.
func (s *Server) SetPeers(peers map[netip.Addr]Timers) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for address, has := range s.sessions {
		if is, there := peers[address]; !there || is != has.timers {
			s.stop(address)
		}
	}
	if len(peers) == 0 {
		s.stopListeners()
		return nil
	}
	if err := s.listen(); err != nil {
		return err
	}
	var errs []error
	for address, timers := range peers {
		if s.sessions[address] == nil {
			errs = append(errs, s.start(address, timers))
		}
	}
	return errors.Join(errs...)
}

// Up reports whether the session with the neighbour is up.
func (s *Server) Up(address netip.Addr) bool {
	k := s.of(address)
	return k != nil && k.is() == Up
}

func (s *Server) of(address netip.Addr) *session {
	s.table.RLock()
	defer s.table.RUnlock()
	return s.sessions[address]
}

// set sets the session with a neighbour. Nil removes it.
func (s *Server) set(address netip.Addr, k *session) {
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

// stop ends a session. mu is held.
func (s *Server) stop(address netip.Addr) {
	k := s.of(address)
	s.set(address, nil)
	k.end()
	k.running.Wait()
}

// start begins a session. mu is held.
func (s *Server) start(address netip.Addr, timers Timers) error {
	conn, err := dial(address)
	if err != nil {
		return fmt.Errorf("BFD with %s: %w", address, err)
	}
	v := &sender{address: address, conn: conn, checked: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	k := &session{timers: timers, received: make(chan packet, 8), mine: 1 + rand.Uint32N(1<<32-1), end: cancel, state: Down}
	s.set(address, k)
	k.running.Go(func() {
		defer v.close()
		k.run(ctx, v, s.options.Changed)
	})
	return nil
}

// dial opens a socket for packets to the neighbour.
func dial(address netip.Addr) (*net.UDPConn, error) {
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, Port))
	var err error
	for range 20 { // other programs use ports of the range, too
		var conn *net.UDPConn
		if conn, err = net.DialUDP("udp", &net.UDPAddr{Port: sourcePorts[0] + rand.IntN(sourcePorts[1]-sourcePorts[0]+1)}, to); err == nil {
			return conn, errors.Join(descriptor.With(conn, func(fd int) error {
				if address.Is4() {
					return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, maxTTL)
				}
				return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, maxTTL)
			}))
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, err
}

// listen starts the listeners of both families. mu is held.
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
			continue // a host without this family has no neighbours of it
		}
		if err == nil {
			err = descriptor.With(conn, func(fd int) error { return unix.SetsockoptInt(fd, f.level, f.option, maxTTL) })
			sockets = append(sockets, conn)
		}
		if err != nil {
			for _, opened := range sockets {
				opened.Close()
			}
			return fmt.Errorf("BFD: %w (if another BFD daemon runs on this host, stop it)", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stopListening = cancel
	for _, conn := range sockets {
		s.listening.Go(func() { s.receive(conn) })
		s.listening.Go(func() {
			<-ctx.Done()
			conn.Close()
		})
	}
	return nil
}

// stopListeners ends the listeners. mu is held.
func (s *Server) stopListeners() {
	if s.stopListening == nil {
		return
	}
	s.stopListening()
	s.stopListening = nil
	s.listening.Wait()
}

// receive passes packets to their sessions until the socket is closed.
func (s *Server) receive(conn *net.UDPConn) {
	buffer := make([]byte, 256)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // such as an ICMP error for a packet
		}
		p, err := parse(buffer[:n])
		if err != nil {
			s.options.Log.Debug("invalid BFD packet", "from", from, "error", err)
			continue
		}
		k := s.of(from.Addr().Unmap())
		if k == nil || !accepts(p, k.mine, k.is()) {
			continue // without a session, of a former session, or forged: it must not fill the queue of valid packets
		}
		select {
		case k.received <- p:
		default: // the queue is full: a sender that floods loses packets
		}
	}
}

func (k *session) is() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// run runs the session until ctx ends, and then sends AdminDown.
func (k *session) run(ctx context.Context, v *sender, changed func()) {
	m := newMachine(k.timers, k.mine)
	transmit, detect := time.NewTimer(0), time.NewTimer(time.Hour)
	detect.Stop()
	defer transmit.Stop()
	defer detect.Stop()
	transmitting := true
	send := func(p packet) { v.send(p, time.Now()) }
	for {
		select {
		case <-ctx.Done():
			m.state, m.diagnostic, m.polling = AdminDown, administrative, false
			send(m.next())
			return
		case p := <-k.received:
			before := m.state
			answer, accepted := m.receive(p)
			if !accepted {
				continue
			}
			if answer != nil {
				send(*answer)
			}
			detect.Reset(m.detectionTime())
			if m.state != before || !transmitting && m.minRx > 0 {
				transmitting = true
				transmit.Reset(0) // the other side waits for this packet
			}
		case <-detect.C:
			m.expire()
		case <-transmit.C:
			send(m.next())
			pause := m.pause()
			if transmitting = pause > 0; transmitting {
				transmit.Reset(pause)
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
