// Package heartbeat lets gateways hear one another on the clients' segment itself, for when the hub's API cannot tell them who lives.
//
// Each gateway sends a small message on its interfaces several times a second: its name, whether it reaches the API, and for how
// long it has had no lease by which it could take something over. Messages are authenticated by a key that only gateways have (HMAC, RFC
// 2104), and an old one proves nothing: each says when it was sent, and a sender's epoch and count only ever go up.
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

// Interval is how often a gateway is heard; one that is not heard for the time of Silence is not there.
const (
	Interval = 100 * time.Millisecond
	Silence  = 3 * Interval
	// clockSkew is how far the gateways' clocks may be apart.
	clockSkew = time.Minute
	// mostGateways is how many gateways are known at most.
	mostGateways = 1000
	// forgottenAfter is after which silence a gateway may be forgotten: its old frames are refused by their time from then on.
	forgottenAfter = 2 * clockSkew
	// retry is how often an interface that is not there is looked for.
	retry = time.Second
	// joinEvery is how often it is seen to that this host is a member of the group.
	joinEvery = time.Minute
)

// Options are what a heart needs.
type Options struct {
	Name string
	// Epoch is that of this process, see NextEpoch.
	Epoch      uint64
	Interfaces []string
	// Reaches tells whether this gateway reaches the API, Idle for how long it has had no lease; 0 while it has one.
	Reaches func() bool
	Idle    func() time.Duration
	Log     *slog.Logger
}

// Verdict is what the segment tells.
type Verdict int

const (
	// Unsure: nobody has listened for long enough to tell.
	Unsure Verdict = iota
	// Alone: no other gateway is heard.
	Alone
	// NoneReaches: others are heard, and none of them reaches the API.
	NoneReaches
	// OneReaches: another gateway reaches the API.
	OneReaches
)

// Heart sends and hears. It is safe for concurrent use.
type Heart struct {
	options Options
	// key is the gateways' common secret. It is there before anything runs.
	key []byte

	mu    sync.Mutex // guards all below
	count uint64
	heard map[string]beat
	// refused are gateways whose heartbeats are heard and not heeded.
	refused map[string]Refusal
	// running are the interfaces that are up and have a carrier.
	running map[string]bool
	// listening since when, and the last time that somebody looked; by clock.Now. swept is when hasRoom forgot gateways last.
	since, looked, swept time.Duration
}

// beat is what was heard of a gateway last. Its lease was over by free at the latest.
type beat struct {
	epoch, count uint64
	reaches      bool
	at, free     time.Duration
	// sent is the latest time that any of its frames has named, in ns since 1970; highest is the highest epoch.
	sent    int64
	highest uint64
}

// follows tells whether a beat is newer than the last one of its gateway. It is by its epoch and count. A gateway that has lost its state may
// have a lower epoch: once nothing is heard any more of the one before, a time that none has named yet tells that it is no old frame.
func (b beat) follows(last beat) bool {
	if b.epoch != last.epoch {
		return b.epoch > last.highest || b.at-last.at > Silence && b.sent > last.sent
	}
	return b.count > last.count
}

// New returns a heart that does not beat yet.
func New(o Options) *Heart {
	return &Heart{options: o, heard: map[string]beat{}, refused: map[string]Refusal{}, running: map[string]bool{}}
}

// Verdict is what is heard now. After a pause, in which frames may have been missed, it is unsure for a while.
func (h *Heart) Verdict() Verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.verdict(clock.Now())
}

func (h *Heart) verdict(now time.Duration) Verdict {
	h.notice(now)
	verdict := Alone
	for _, b := range h.heard {
		switch {
		case now-b.at > Silence:
		case b.reaches:
			return OneReaches
		default:
			verdict = NoneReaches
		}
	}
	if now-h.since <= Silence {
		return Unsure
	}
	return verdict
}

// Since tells what may have been missed since a time, by clock.Now: whether a gateway that is heard has had a lease after it, and whether
// one that was heard then is not heard now.
func (h *Heart) Since(then time.Duration) (leased, missing bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := clock.Now()
	for _, b := range h.heard {
		switch {
		case now-b.at <= Silence:
			leased = leased || b.free > then
		case b.at >= then-Silence:
			missing = true
		}
	}
	return leased, missing
}

// notice restarts the time of listening when nobody has looked for so long that the process may have stood still; mu is held.
func (h *Heart) notice(now time.Duration) {
	if now-h.looked > Silence {
		h.since = now
	}
	h.looked = now
}

// link notes whether an interface is up. One that comes up may lead to gateways that nobody has heard yet, and without any there is nothing
// to be heard; mu is held.
func (h *Heart) link(name string, running bool, now time.Duration) {
	if running && !h.running[name] {
		h.running[name], h.since = true, now
	}
	if !running {
		delete(h.running, name)
	}
	if len(h.running) == 0 {
		h.since = now
	}
}

// Run sends and listens until ctx ends, with the gateways' common secret as the key.
func (h *Heart) Run(ctx context.Context, key []byte) error {
	h.key = key
	var running sync.WaitGroup
	for _, name := range h.options.Interfaces {
		running.Go(func() { h.keep(ctx, name) })
	}
	running.Wait()
	return nil
}

// keep uses an interface, and looks for it again when it fails.
func (h *Heart) keep(ctx context.Context, name string) {
	for ctx.Err() == nil {
		began := time.Now()
		err := h.use(ctx, name)
		if ctx.Err() != nil {
			return
		}
		h.options.Log.Warn("heartbeats on an interface", "interface", name, "error", err)
		if time.Since(began) > retry {
			continue // others miss this gateway within less time
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}

// use sends and listens on an interface, until it fails, is replaced by another one of its name, or ctx ends.
func (h *Heart) use(ctx context.Context, name string) error {
	begun, err := uplink.Look(name)
	if err != nil {
		return err
	}
	if begun.Index == 0 {
		return errNotThere
	}
	p, err := open(begun)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	var readers sync.WaitGroup
	readers.Go(func() { failed <- h.listen(p.frames, 0) })
	readers.Go(func() { failed <- h.listen(p.packets, ipv6Header) })
	defer readers.Wait()
	defer p.close()
	defer h.look(name, false)
	ticker, seldom := time.NewTicker(Interval), time.NewTicker(joinEvery)
	defer ticker.Stop()
	defer seldom.Stop()
	h.join(p, name)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-seldom.C:
			h.join(p, name)
			continue
		case <-ticker.C:
		}
		is, err := uplink.Look(name)
		if err != nil {
			return err
		}
		if is.Index != begun.Index {
			return errReplaced
		}
		h.look(name, is.Running)
		if err := p.send(h.frame(is.MAC, time.Now())); err != nil {
			return err
		}
	}
}

// join has this host be a member of the group, which it may not be any more. Without IPv6 it cannot be: then only frames are heard.
func (h *Heart) join(p *place, name string) {
	_, err := p.groups.Restore()
	if err == nil {
		err = p.groups.Join(group6)
	}
	if err != nil {
		h.options.Log.Debug("heartbeats are not heard by IPv6", "interface", name, "error", err)
	}
}

// look is what is seen of an interface at each beat.
func (h *Heart) look(name string, running bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := clock.Now()
	h.notice(now)
	h.link(name, running, now)
}

// listen hears what comes to a socket, until that fails or is closed. A message comes after headers of so many bytes more than Ethernet's.
func (h *Heart) listen(conn *packet.Conn, more int) error {
	buffer := make([]byte, maxFrame)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once when the interface goes down; it stays usable
		}
		if err != nil {
			return err
		}
		if n >= more {
			h.note(h.hear(buffer[more:n], time.Now()))
		}
	}
}

// A frame, after Ethernet's header: version, flags, when it was sent (ns since 1970), the sender's epoch, its count, for how long it
// has had no lease (ns), the length of its name, the name, and the HMAC of all that.
const (
	fixed       = 1 + 1 + 8 + 8 + 8 + 8 + 1
	version     = 2
	flagReaches = 1
)

func (h *Heart) frame(from net.HardwareAddr, at time.Time) []byte {
	h.mu.Lock()
	h.count++
	count := h.count
	h.mu.Unlock()
	flags := byte(0)
	if h.options.Reaches() {
		flags = flagReaches
	}
	b := append(append([]byte{}, group...), from...)
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, version, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, h.options.Epoch)
	b = binary.BigEndian.AppendUint64(b, count)
	b = binary.BigEndian.AppendUint64(b, uint64(h.options.Idle()))
	b = append(append(b, byte(len(h.options.Name))), h.options.Name...)
	return append(b, h.sign(b[ethernetHeader:])...)
}

func (h *Heart) sign(text []byte) []byte {
	mac := hmac.New(sha256.New, h.key)
	mac.Write(text)
	return mac.Sum(nil)
}

// hear takes a frame, or says why it proves nothing.
func (h *Heart) hear(frame []byte, at time.Time) error { return h.take(frame, at, clock.Now()) }

func (h *Heart) take(frame []byte, at time.Time, since time.Duration) error {
	if len(frame) < ethernetHeader+fixed {
		return errors.New("it is too short")
	}
	b := frame[ethernetHeader:]
	end := fixed + int(b[fixed-1])
	if b[0] != version {
		return fmt.Errorf("it is of version %d", b[0])
	}
	if len(b) < end+sha256.Size || !hmac.Equal(h.sign(b[:end]), b[end:end+sha256.Size]) {
		return errors.New("it is not signed with the gateways' key")
	}
	name := string(b[fixed:end])
	if name == h.options.Name {
		return nil
	}
	idle := binary.BigEndian.Uint64(b[26:])
	if idle > math.MaxInt64 {
		return errors.New("it is idle for longer than there is time")
	}
	now := beat{sent: int64(binary.BigEndian.Uint64(b[2:])), epoch: binary.BigEndian.Uint64(b[10:]), count: binary.BigEndian.Uint64(b[18:]), reaches: b[1]&flagReaches != 0, at: since}
	// Where the frame was on its way for long, or the sender stood still, that is too late and never too early.
	now.free = now.at - time.Duration(idle)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.hasRoom(name, since) {
		return fmt.Errorf("%d other gateways are heard already", mostGateways)
	}
	if at.Sub(time.Unix(0, now.sent)).Abs() > clockSkew {
		return h.refuse(name, reasonClock, since)
	}
	return h.heed(name, now)
}

// hasRoom tells whether a gateway is known, or may become so. Who has the key can make up any number of them. mu is held.
func (h *Heart) hasRoom(name string, now time.Duration) bool {
	_, heard := h.heard[name]
	_, refused := h.refused[name]
	if heard || refused || len(h.heard)+len(h.refused) < mostGateways {
		return true
	}
	if now-h.swept < time.Second {
		return false
	}
	h.swept = now
	maps.DeleteFunc(h.heard, func(_ string, b beat) bool { return now-b.at > forgottenAfter })
	h.forgetRefusals(now)
	return len(h.heard)+len(h.refused) < mostGateways
}

// heed takes a beat that is signed and of now; mu is held.
func (h *Heart) heed(name string, now beat) error {
	last, known := h.heard[name]
	newer := !known || now.follows(last)
	sent, highest := max(now.sent, last.sent), max(now.epoch, last.highest)
	if newer {
		delete(h.refused, name)
		last = now
	}
	last.sent, last.highest = sent, highest
	h.heard[name] = last
	switch {
	case newer:
		return nil
	case now.epoch == last.epoch:
		return fmt.Errorf("gateway %s has said that before", name) // as by another interface on the same segment
	}
	return h.refuse(name, reasonEpoch, now.at)
}
