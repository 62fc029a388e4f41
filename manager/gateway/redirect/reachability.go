package redirect

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Reachability tells whether the hosts of failed gateways answer: their dataplanes work without their managers. It also tells when this gateway's own
// addresses have changed, to which peers redirect packets. It is safe for concurrent use.
type Reachability struct {
	ask     func(netip.Addr) bool
	own     func() []netip.Addr // nil where nobody is told
	changed func()

	mu sync.Mutex // guards hosts
	// hosts are those in which somebody was interested not long ago.
	hosts map[netip.Addr]*reachability
}

type reachability struct {
	alive bool
	asked time.Time // the last time that somebody was interested
}

const (
	// askEvery is how often a host is asked, forgetAfter for how long after somebody was interested last.
	askEvery    = time.Second
	forgetAfter = time.Minute
	// answerWithin is how long a host of the same segment takes to answer, at most.
	answerWithin = 100 * time.Millisecond
)

// NewReachability returns one that asks hosts by ask. It calls changed when an answer, or the addresses of own, are others than before.
func NewReachability(ask func(netip.Addr) bool, own func() []netip.Addr, changed func()) *Reachability {
	return &Reachability{ask: ask, own: own, changed: changed, hosts: map[netip.Addr]*reachability{}}
}

// Alive returns those of the addresses at which a host answers. Unknown ones are asked now.
func (r *Reachability) Alive(addresses []netip.Addr) (out []netip.Addr) {
	unknown := r.track(addresses)
	answers := r.askAll(unknown)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range unknown {
		r.hosts[a] = &reachability{alive: answers[a], asked: time.Now()}
	}
	for _, a := range addresses {
		if r.hosts[a].alive {
			out = append(out, a)
		}
	}
	return out
}

// track notes the interest in the addresses, and returns the unknown ones.
func (r *Reachability) track(addresses []netip.Addr) (unknown []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range addresses {
		if host := r.hosts[a]; host != nil {
			host.asked = time.Now()
		} else {
			unknown = append(unknown, a)
		}
	}
	return unknown
}

// askAll asks hosts all at once: many that are gone take no longer than one.
func (r *Reachability) askAll(addresses []netip.Addr) map[netip.Addr]bool {
	answers := make([]bool, len(addresses))
	var asking sync.WaitGroup
	for i, a := range addresses {
		asking.Go(func() { answers[i] = r.ask(a) })
	}
	asking.Wait()
	of := map[netip.Addr]bool{}
	for i, a := range addresses {
		of[a] = answers[i]
	}
	return of
}

// Run asks again and again, until ctx ends.
func (r *Reachability) Run(ctx context.Context) error {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	var before []netip.Addr
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var own []netip.Addr
		if r.own != nil {
			own = r.own()
		}
		if r.look() || !slices.Equal(own, before) {
			r.changed()
		}
		before = own
	}
}

// look asks all hosts once, and tells whether something is otherwise than before.
func (r *Reachability) look() (changed bool) {
	r.mu.Lock()
	var addresses []netip.Addr
	for a, host := range r.hosts {
		if time.Since(host.asked) > forgetAfter {
			delete(r.hosts, a)
			continue
		}
		addresses = append(addresses, a)
	}
	r.mu.Unlock()
	answers := r.askAll(addresses)
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, is := range answers {
		if host := r.hosts[a]; host.alive != is {
			host.alive, changed = is, true
		}
	}
	return changed
}

// discard is a port that nobody listens at (RFC 863); a host that is there says so.
const discard = 9

// AskHost asks a host whether it is there: a datagram to a closed port is answered by ICMP.
func AskHost(address netip.Addr) bool {
	for range 2 { // one may be lost
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, discard)))
		if err != nil {
			return false
		}
		_, err = conn.Write([]byte{0})
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(answerWithin))
			_, err = conn.Read(make([]byte, 1))
		}
		conn.Close()
		if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
	}
	return false
}
