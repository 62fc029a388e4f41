package gateway

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

// vitals tells whether the hosts of gateways that have failed are there: their dataplanes work on without their managers. It also tells
// when this gateway's own addresses have come or gone, where others reach it.
type vitals struct {
	ask     func(netip.Addr) bool
	own     func() []netip.Addr // nil where nobody is told
	changed func()

	mu sync.Mutex // guards hosts
	// hosts are those that were asked about not long ago.
	hosts map[netip.Addr]*vital
}

type vital struct {
	alive bool
	asked time.Time // the last time that somebody wished to know
}

const (
	// askEvery is how often a host is asked, forgetAfter how long after nobody wishes to know any more.
	askEvery    = time.Second
	forgetAfter = time.Minute
	// answerWithin is how long a host of the same segment takes to answer, at most.
	answerWithin = 100 * time.Millisecond
)

func newVitals(ask func(netip.Addr) bool, own func() []netip.Addr, changed func()) *vitals {
	return &vitals{ask: ask, own: own, changed: changed, hosts: map[netip.Addr]*vital{}}
}

// alive are those of the addresses at which a host answers. Those that nobody has wished to know of are asked now.
func (v *vitals) alive(addresses []netip.Addr) (out []netip.Addr) {
	unknown := v.wish(addresses)
	answers := v.askAll(unknown)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, a := range unknown {
		v.hosts[a] = &vital{alive: answers[a], asked: time.Now()}
	}
	for _, a := range addresses {
		if v.hosts[a].alive {
			out = append(out, a)
		}
	}
	return out
}

// wish notes that somebody wishes to know of the addresses, and returns those that are not known.
func (v *vitals) wish(addresses []netip.Addr) (unknown []netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, a := range addresses {
		if host := v.hosts[a]; host != nil {
			host.asked = time.Now()
		} else {
			unknown = append(unknown, a)
		}
	}
	return unknown
}

// askAll asks hosts all at once: many that are gone take no longer than one.
func (v *vitals) askAll(addresses []netip.Addr) map[netip.Addr]bool {
	answers := make([]bool, len(addresses))
	var asking sync.WaitGroup
	for i, a := range addresses {
		asking.Go(func() { answers[i] = v.ask(a) })
	}
	asking.Wait()
	of := map[netip.Addr]bool{}
	for i, a := range addresses {
		of[a] = answers[i]
	}
	return of
}

// run asks again and again, until ctx ends.
func (v *vitals) run(ctx context.Context) error {
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
		if v.own != nil {
			own = v.own()
		}
		if v.look() || !slices.Equal(own, before) {
			v.changed()
		}
		before = own
	}
}

// look asks all hosts once, and tells whether something is otherwise than before.
func (v *vitals) look() (changed bool) {
	v.mu.Lock()
	var addresses []netip.Addr
	for a, host := range v.hosts {
		if time.Since(host.asked) > forgetAfter {
			delete(v.hosts, a)
			continue
		}
		addresses = append(addresses, a)
	}
	v.mu.Unlock()
	answers := v.askAll(addresses)
	v.mu.Lock()
	defer v.mu.Unlock()
	for a, is := range answers {
		if host := v.hosts[a]; host.alive != is {
			host.alive, changed = is, true
		}
	}
	return changed
}

// discard is a port that nobody listens at (RFC 863); a host that is there says so.
const discard = 9

// askHost asks a host whether it is there: a datagram to a closed port is answered by ICMP.
func askHost(address netip.Addr) bool {
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
