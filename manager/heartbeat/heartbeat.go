// Package heartbeat lets gateways receive signs of life of one another on the clients' segment itself, for when the hub's API is unreachable.
//
// Each gateway sends a small message on its interfaces several times a second: its name, whether it reaches the API, and for how long it has had no
// Lease. Messages are authenticated by a key that only gateways have (HMAC, RFC 2104). An old message proves nothing: each has the time when it was
// sent, and the epoch and the count of its sender only grow.
package heartbeat

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/uplink"
)

// Interval is the time between two heartbeats. A gateway is silent if nothing of it was received for Silence.
const (
	Interval = 100 * time.Millisecond
	Silence  = 3 * Interval
	// maxClockSkew is how much the clocks of gateways may differ.
	maxClockSkew = time.Minute
	// maxGateways bounds how many gateways are known.
	maxGateways = 1000
	// After forgetAfter a silent gateway may be forgotten: its old frames are refused by their time from then on.
	forgetAfter = 2 * maxClockSkew
	// retryInterval is the pause before a failed or missing interface is tried again.
	retryInterval = time.Second
	// joinInterval is how often the membership in the multicast group is renewed.
	joinInterval = time.Minute
)

// Options configure a Speaker.
type Options struct {
	Name string
	// Epoch is the epoch of this process, see NextEpoch.
	Epoch      uint64
	Interfaces []string
	// ReachesAPI reports whether this gateway reaches the API. WithoutLeaseFor returns for how long it has had no Lease, 0 while it has one.
	ReachesAPI      func() bool
	WithoutLeaseFor func() time.Duration
	Log             *slog.Logger
}

// PeerState is what is known of the other gateways on the segment.
type PeerState int

const (
	// Unknown: this gateway has not listened for long enough.
	Unknown PeerState = iota
	// NoPeer: no other gateway is heard.
	NoPeer
	// PeersWithoutAPI: others are heard, and none of them reaches the API.
	PeersWithoutAPI
	// PeerReachesAPI: another gateway reaches the API.
	PeerReachesAPI
)

// Speaker sends and receives heartbeats. It is safe for concurrent use.
type Speaker struct {
	options Options
	// key is the gateways' common key. It is set before anything runs.
	key []byte

	mu    sync.Mutex // guards all below
	count uint64
	peers map[string]received
	// refusals are gateways whose heartbeats are received and not accepted.
	refusals map[string]Refusal
	// running are the interfaces that are up and have a carrier.
	running map[string]bool
	// listeningSince is the time from which on nothing was missed, lastCheck the last check for a pause, lastSweep the last time that hasRoom forgot
	// gateways. All are by clock.Now.
	listeningSince, lastCheck, lastSweep time.Duration
}

// received is the last heartbeat of a gateway. The gateway has had no Lease since withoutLeaseSince, or even longer.
type received struct {
	epoch, count                  uint64
	reachesAPI                    bool
	receivedAt, withoutLeaseSince time.Duration
	// maxSent is the latest time that any of its frames has named, in ns since 1970. maxEpoch is the highest epoch.
	maxSent  int64
	maxEpoch uint64
}

// isNewerThan compares two heartbeats of one gateway, by epoch and count. A gateway that has lost its state may have a lower epoch than before. Its
// heartbeat counts once its former epoch is silent and the heartbeat names a time that no frame has named yet: so it is no old frame.
func (b received) isNewerThan(last received) bool {
	if b.epoch != last.epoch {
		return b.epoch > last.maxEpoch || b.receivedAt-last.receivedAt > Silence && b.maxSent > last.maxSent
	}
	return b.count > last.count
}

// New returns a speaker that does not send yet.
func New(o Options) *Speaker {
	return &Speaker{options: o, peers: map[string]received{}, refusals: map[string]Refusal{}, running: map[string]bool{}}
}

// PeerState returns what is known now. After a pause, in which frames may have been missed, it is Unknown for a while.
func (s *Speaker) PeerState() PeerState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peerState(clock.Now())
}

func (s *Speaker) peerState(now time.Duration) PeerState {
	s.detectPause(now)
	state := NoPeer
	for _, peer := range s.peers {
		switch {
		case now-peer.receivedAt > Silence:
		case peer.reachesAPI:
			return PeerReachesAPI
		default:
			state = PeersWithoutAPI
		}
	}
	if now-s.listeningSince <= Silence {
		return Unknown
	}
	return state
}

// PeersSince returns what may have happened since a time, by clock.Now: whether a gateway that is heard has had a Lease after it, and whether a
// gateway that was heard then is not heard now.
func (s *Speaker) PeersSince(since time.Duration) (leased, missing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := clock.Now()
	for _, peer := range s.peers {
		switch {
		case now-peer.receivedAt <= Silence:
			leased = leased || peer.withoutLeaseSince > since
		case peer.receivedAt >= since-Silence:
			missing = true
		}
	}
	return leased, missing
}

// detectPause restarts the time of listening if nobody has called it for so long that the process may have stood still. The caller holds mu.
func (s *Speaker) detectPause(now time.Duration) {
	if now-s.lastCheck > Silence {
		s.listeningSince = now
	}
	s.lastCheck = now
}

// setLink notes whether an interface is up. An interface that comes up may lead to gateways that were not heard yet, and without any interface
// nothing can be heard. So both restart the time of listening. The caller holds mu.
func (s *Speaker) setLink(name string, running bool, now time.Duration) {
	if running && !s.running[name] {
		s.running[name], s.listeningSince = true, now
	}
	if !running {
		delete(s.running, name)
	}
	if len(s.running) == 0 {
		s.listeningSince = now
	}
}

// Run sends and listens until ctx ends, with the gateways' common key.
func (s *Speaker) Run(ctx context.Context, key []byte) error {
	s.key = key
	var running sync.WaitGroup
	for _, name := range s.options.Interfaces {
		running.Go(func() { s.runInterface(ctx, name) })
	}
	running.Wait()
	return nil
}

// runInterface uses an interface, and tries again when it fails.
func (s *Speaker) runInterface(ctx context.Context, name string) {
	for ctx.Err() == nil {
		started := time.Now()
		err := s.serveInterface(ctx, name)
		if ctx.Err() != nil {
			return
		}
		s.options.Log.Warn("send and receive heartbeats", "interface", name, "error", err)
		if time.Since(started) > retryInterval {
			continue // peers must not miss this gateway
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
}

// serveInterface sends and listens on an interface, until it fails, another interface gets its name, or ctx ends.
func (s *Speaker) serveInterface(ctx context.Context, name string) error {
	initial, err := uplink.ReadState(name)
	if err != nil {
		return err
	}
	if initial.Index == 0 {
		return errNoInterface
	}
	sockets, err := openSockets(initial)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	var readers sync.WaitGroup
	readers.Go(func() { failed <- s.listen(sockets.frames, 0) })
	readers.Go(func() { failed <- s.listen(sockets.packets, ipv6Header) })
	defer readers.Wait()
	defer sockets.close()
	defer s.checkLink(name, false)
	ticker, joinTicker := time.NewTicker(Interval), time.NewTicker(joinInterval)
	defer ticker.Stop()
	defer joinTicker.Stop()
	s.joinGroup(sockets, name)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-joinTicker.C:
			s.joinGroup(sockets, name)
			continue
		case <-ticker.C:
		}
		current, err := uplink.ReadState(name)
		if err != nil {
			return err
		}
		if current.Index != initial.Index {
			return errReplaced
		}
		s.checkLink(name, current.Running)
		if err := sockets.send(s.frame(current.MAC, time.Now())); err != nil {
			return err
		}
	}
}

// joinGroup makes this host a member of the multicast group, which it may not be any more. Without IPv6 it cannot be a member: then only frames are
// received.
func (s *Speaker) joinGroup(sockets *sockets, name string) {
	_, err := sockets.groups.Restore()
	if err == nil {
		err = sockets.groups.Join(group6)
	}
	if err != nil {
		s.options.Log.Debug("join the IPv6 multicast group of heartbeats", "interface", name, "error", err)
	}
}

// checkLink notes the state of an interface each time that a heartbeat is sent.
func (s *Speaker) checkLink(name string, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := clock.Now()
	s.detectPause(now)
	s.setLink(name, running, now)
}

// listen receives from a socket until that fails or is closed. A message follows more bytes of headers after Ethernet's.
func (s *Speaker) listen(conn *packet.Conn, headers int) error {
	buffer := make([]byte, maxFrame)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if errors.Is(err, unix.ENETDOWN) {
			continue // returned once when the interface goes down; the socket stays usable
		}
		if err != nil {
			return err
		}
		if n >= headers {
			s.logRefusal(s.handle(buffer[headers:n], time.Now()))
		}
	}
}

// A frame has after the Ethernet header: version, flags, the time when it was sent (ns since 1970), the sender's epoch, its count, for how long it
// has had no Lease (ns), the length of its name, the name, and the HMAC of all that.
const (
	headerLength   = 1 + 1 + 8 + 8 + 8 + 8 + 1
	frameVersion   = 2
	flagReachesAPI = 1
)

func (s *Speaker) frame(from net.HardwareAddr, at time.Time) []byte {
	s.mu.Lock()
	s.count++
	count := s.count
	s.mu.Unlock()
	flags := byte(0)
	if s.options.ReachesAPI() {
		flags = flagReachesAPI
	}
	b := append(append([]byte{}, groupMAC...), from...)
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, frameVersion, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, s.options.Epoch)
	b = binary.BigEndian.AppendUint64(b, count)
	b = binary.BigEndian.AppendUint64(b, uint64(s.options.WithoutLeaseFor()))
	b = append(append(b, byte(len(s.options.Name))), s.options.Name...)
	return append(b, s.sign(b[ethernetHeader:])...)
}

func (s *Speaker) sign(text []byte) []byte {
	mac := hmac.New(sha256.New, s.key)
	mac.Write(text)
	return mac.Sum(nil)
}

// handle accepts a frame, or returns why it proves nothing.
func (s *Speaker) handle(frame []byte, at time.Time) error { return s.handleAt(frame, at, clock.Now()) }

func (s *Speaker) handleAt(frame []byte, at time.Time, now time.Duration) error {
	if len(frame) < ethernetHeader+headerLength {
		return errors.New("the frame is too short")
	}
	b := frame[ethernetHeader:]
	end := headerLength + int(b[headerLength-1])
	if b[0] != frameVersion {
		return fmt.Errorf("the frame has the unknown version %d", b[0])
	}
	if len(b) < end+sha256.Size || !hmac.Equal(s.sign(b[:end]), b[end:end+sha256.Size]) {
		return errors.New("the frame is not signed with the gateways' key")
	}
	name := string(b[headerLength:end])
	if name == s.options.Name {
		return nil
	}
	idle := binary.BigEndian.Uint64(b[26:])
	if idle > math.MaxInt64 {
		return errors.New("the time without a Lease is out of range")
	}
	beat := received{maxSent: int64(binary.BigEndian.Uint64(b[2:])), epoch: binary.BigEndian.Uint64(b[10:]), count: binary.BigEndian.Uint64(b[18:]), reachesAPI: b[1]&flagReachesAPI != 0, receivedAt: now}
	// If the frame was delayed, or the sender stood still, this is too late and never too early.
	beat.withoutLeaseSince = beat.receivedAt - time.Duration(idle)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hasRoom(name, now) {
		return fmt.Errorf("%d other gateways are known already", maxGateways)
	}
	if at.Sub(time.Unix(0, beat.maxSent)).Abs() > maxClockSkew {
		return s.refuse(name, reasonClock, now)
	}
	return s.accept(name, beat)
}

// hasRoom reports whether a gateway is known, or may be added. Whoever has the key can make up any number of gateways. The caller holds mu.
func (s *Speaker) hasRoom(name string, now time.Duration) bool {
	_, heard := s.peers[name]
	_, refused := s.refusals[name]
	if heard || refused || len(s.peers)+len(s.refusals) < maxGateways {
		return true
	}
	if now-s.lastSweep < time.Second {
		return false
	}
	s.lastSweep = now
	maps.DeleteFunc(s.peers, func(_ string, b received) bool { return now-b.receivedAt > forgetAfter })
	s.expireRefusals(now)
	return len(s.peers)+len(s.refusals) < maxGateways
}

// accept takes a signed and current heartbeat. The caller holds mu.
func (s *Speaker) accept(name string, beat received) error {
	last, known := s.peers[name]
	newer := !known || beat.isNewerThan(last)
	sent, highest := max(beat.maxSent, last.maxSent), max(beat.epoch, last.maxEpoch)
	if newer {
		delete(s.refusals, name)
		last = beat
	}
	last.maxSent, last.maxEpoch = sent, highest
	s.peers[name] = last
	switch {
	case newer:
		return nil
	case beat.epoch == last.epoch:
		return fmt.Errorf("the frame of gateway %s is not new", name) // it came by two interfaces, for example
	}
	return s.refuse(name, reasonEpoch, beat.receivedAt)
}
