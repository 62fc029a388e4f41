package drill

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/manager/descriptor"
)

// What clients do: new connections a second, and connections that stay, each of which asks now and then.
const (
	newEachSecond = 200
	longLived     = 200
	asksEvery     = 250 * time.Millisecond
	// clientWaits is how long a client waits for a new connection and its answer, askWaits for an answer on one that stays.
	clientWaits = 5 * time.Second
	askWaits    = 10 * time.Second
)

// load is clients, which take turns.
type load struct {
	clients []*netlab.Namespace
	end     context.CancelFunc
	done    sync.WaitGroup

	mu       sync.Mutex // guards the rest
	requests []request
	kept     map[netip.Addr]int
	lost     map[netip.Addr]int
}

type request struct {
	address netip.Addr
	began   time.Time
	took    time.Duration
	// repeated: the client's kernel sent some packet again.
	repeated bool
	err      error
}

// load begins with the connections that stay, and returns when all of them have been answered once.
func (f *fleet) load() (*load, error) {
	ctx, end := context.WithCancel(context.Background())
	l := &load{clients: f.clients(), end: end, kept: map[netip.Addr]int{}, lost: map[netip.Addr]int{}}
	for i := range longLived {
		address := f.addresses[i%len(f.addresses)]
		c, err := l.dial(ctx, i/len(f.addresses), address)
		if err != nil {
			l.end()
			return nil, err
		}
		l.done.Go(func() { l.stay(ctx, address, c) })
	}
	l.done.Go(func() { l.ask(ctx, f.addresses) })
	return l, nil
}

// dial connects from the client whose turn it is.
func (l *load) dial(ctx context.Context, turn int, address netip.Addr) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, clientWaits)
	defer cancel()
	return l.clients[turn%len(l.clients)].DialContext(ctx, "tcp", netip.AddrPortFrom(address, servedPort).String())
}

// say sends a line and reads it back.
func say(c net.Conn, lines *bufio.Reader, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "are you there?\n"); err != nil {
		return err
	}
	_, err := lines.ReadString('\n')
	return err
}

// stay asks on a connection until the load ends or the connection does.
func (l *load) stay(ctx context.Context, address netip.Addr, c net.Conn) {
	defer c.Close()
	lines := bufio.NewReader(c)
	for ctx.Err() == nil {
		if err := say(c, lines, askWaits); err != nil {
			l.mu.Lock()
			l.lost[address]++
			l.mu.Unlock()
			return
		}
		_ = pause(ctx, asksEvery)
	}
	l.mu.Lock()
	l.kept[address]++
	l.mu.Unlock()
}

// ask makes new connections to one address after the other, at an even pace.
func (l *load) ask(ctx context.Context, addresses []netip.Addr) {
	ticker := time.NewTicker(time.Second / newEachSecond)
	defer ticker.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		address := addresses[i%len(addresses)]
		l.done.Go(func() {
			r := request{address: address, began: time.Now()}
			// One that has begun is seen to its end.
			c, err := l.dial(context.WithoutCancel(ctx), i/len(addresses), address)
			if err == nil {
				err = say(c, bufio.NewReader(c), clientWaits)
				r.repeated = repeated(c)
				_ = c.Close()
			}
			r.took, r.err = time.Since(r.began), err
			l.mu.Lock()
			l.requests = append(l.requests, r)
			l.mu.Unlock()
		})
	}
}

// stop ends the load, and tells what became of it: of a gateway that failed at a time, whose addresses were theirs.
func (l *load) stop(at time.Time, theirs func(netip.Addr) bool) (r Result) {
	ended := time.Now()
	l.end()
	l.done.Wait()
	answered := []time.Time{at}
	for _, q := range l.requests {
		if q.began.Before(at) {
			continue
		}
		r.Requests++
		switch {
		case q.err != nil:
			r.Failed++
		case q.took > time.Second:
			r.Slow++
		}
		if finished := q.began.Add(q.took); q.err == nil && theirs(q.address) && finished.Before(ended) {
			answered = append(answered, finished)
		}
	}
	slices.SortFunc(answered, time.Time.Compare)
	for i, t := range append(answered[1:], ended) {
		r.Gap = max(r.Gap, t.Sub(answered[i]))
	}
	for address, n := range l.kept {
		if theirs(address) {
			r.Kept += n
		}
	}
	for address, n := range l.lost {
		if theirs(address) {
			r.Lost += n
		} else {
			r.Strangers += n
		}
	}
	return r
}

// repeated tells whether packets of the connection had to be sent again (TCP_INFO, tcp(7)).
func repeated(c net.Conn) (is bool) {
	_ = descriptor.With(c.(*net.TCPConn), func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		is = err == nil && info.Total_retrans > 0
		return err
	})
	return is
}

// leastTimeout is how long Linux waits at least for a packet to be acknowledged before it sends it again (TCP_RTO_MIN).
const leastTimeout = 200 * time.Millisecond

// lost tells whether packets of the request were lost: late answers alone are those of a busy host. What was sent again sooner was not lost:
// a SYN from a port whose last connection ended while the gateway's link was down, so that the gateway has it still, is answered with that
// one's ACK (RFC 5961, 4.2), ends it, and is sent again at once.
func (r request) lost() bool { return r.err != nil || r.repeated && r.took >= leastTimeout }

// disturbed is for how long, from a time on, packets of some requests were lost. The load has stopped.
func (l *load) disturbed(at time.Time) (longest time.Duration) {
	for _, q := range l.requests {
		if !q.began.Before(at) && q.lost() {
			longest = max(longest, q.began.Sub(at))
		}
	}
	return longest
}
