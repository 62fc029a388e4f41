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

// Reachability finds whether the hosts of failed gateways answer: their dataplanes work without their managers. It also reports changes of this
// gateway's own addresses, to which peers redirect packets. It is safe for concurrent use.
type Reachability struct {
	check        func(netip.Addr) bool
	ownAddresses func() []netip.Addr // may be nil
	changed      func()

	mu sync.Mutex // guards hosts
	// hosts are those that Alive was called for recently.
	hosts map[netip.Addr]*hostState
}

type hostState struct {
	alive     bool
	lastQuery time.Time // the last call of Alive for this host
}

const (
	// A host is checked every checkInterval, until forgetAfter the last call of Alive for it.
	checkInterval = time.Second
	forgetAfter   = time.Minute
	// answerTimeout is the limit for the answer of a host on the same segment.
	answerTimeout = 100 * time.Millisecond
)

// NewReachability returns a Reachability that checks hosts by check. It calls changed when an answer, or the result of own, has changed.
func NewReachability(check func(netip.Addr) bool, own func() []netip.Addr, changed func()) *Reachability {
	return &Reachability{check: check, ownAddresses: own, changed: changed, hosts: map[netip.Addr]*hostState{}}
}

// Alive returns the addresses at which a host answers. It checks unknown addresses at once.
func (r *Reachability) Alive(addresses []netip.Addr) (out []netip.Addr) {
	unknown := r.track(addresses)
	answers := r.checkAll(unknown)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range unknown {
		r.hosts[a] = &hostState{alive: answers[a], lastQuery: time.Now()}
	}
	for _, a := range addresses {
		if r.hosts[a].alive {
			out = append(out, a)
		}
	}
	return out
}

// track notes the call of Alive for these addresses, and returns the unknown ones.
func (r *Reachability) track(addresses []netip.Addr) (unknown []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range addresses {
		if host := r.hosts[a]; host != nil {
			host.lastQuery = time.Now()
		} else {
			unknown = append(unknown, a)
		}
	}
	return unknown
}

// checkAll checks hosts in parallel: many failed hosts take no longer than one.
func (r *Reachability) checkAll(addresses []netip.Addr) map[netip.Addr]bool {
	answers := make([]bool, len(addresses))
	var checks sync.WaitGroup
	for i, a := range addresses {
		checks.Go(func() { answers[i] = r.check(a) })
	}
	checks.Wait()
	byAddress := map[netip.Addr]bool{}
	for i, a := range addresses {
		byAddress[a] = answers[i]
	}
	return byAddress
}

// Run checks the hosts again and again until ctx ends.
func (r *Reachability) Run(ctx context.Context) error {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	var before []netip.Addr
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var own []netip.Addr
		if r.ownAddresses != nil {
			own = r.ownAddresses()
		}
		if r.checkHosts() || !slices.Equal(own, before) {
			r.changed()
		}
		before = own
	}
}

// checkHosts checks all hosts once, and returns whether an answer has changed.
func (r *Reachability) checkHosts() (changed bool) {
	r.mu.Lock()
	var addresses []netip.Addr
	for a, host := range r.hosts {
		if time.Since(host.lastQuery) > forgetAfter {
			delete(r.hosts, a)
			continue
		}
		addresses = append(addresses, a)
	}
	r.mu.Unlock()
	answers := r.checkAll(addresses)
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, alive := range answers {
		if host := r.hosts[a]; host.alive != alive {
			host.alive, changed = alive, true
		}
	}
	return changed
}

// discardPort is a port at which usually nobody listens (RFC 863). A host answers then with an ICMP error.
const discardPort = 9

// CheckHost reports whether a host answers: it sends a datagram to a closed port, and waits for the ICMP error.
func CheckHost(address netip.Addr) bool {
	for range 2 { // a packet may get lost
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, discardPort)))
		if err != nil {
			return false
		}
		_, err = conn.Write([]byte{0})
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(answerTimeout))
			_, err = conn.Read(make([]byte, 1))
		}
		conn.Close()
		if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
	}
	return false
}
