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

// The load: new connections each second, and long connections with a request from time to time.
const (
	newEachSecond = 200
	longLived     = 200
	requestEvery  = 250 * time.Millisecond
	// newTimeout is how long a client waits for a new connection and its answer, longTimeout for an answer on a long connection.
	newTimeout  = 5 * time.Second
	longTimeout = 10 * time.Second
)

// load makes connections from clients in turn.
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
	// repeated means that the client's kernel sent a packet again.
	repeated bool
	err      error
}

// startLoad starts a load, and returns once all long connections are established.
func (f *fleet) startLoad() (*load, error) {
	ctx, end := context.WithCancel(context.Background())
	l := &load{clients: f.clients(), end: end, kept: map[netip.Addr]int{}, lost: map[netip.Addr]int{}}
	for i := range longLived {
		address := f.addresses[i%len(f.addresses)]
		c, err := l.dial(ctx, i/len(f.addresses), address)
		if err != nil {
			l.end()
			return nil, err
		}
		l.done.Go(func() { l.useLong(ctx, address, c) })
	}
	l.done.Go(func() { l.makeNew(ctx, f.addresses) })
	return l, nil
}

// dial connects from the client of this turn.
func (l *load) dial(ctx context.Context, turn int, address netip.Addr) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, newTimeout)
	defer cancel()
	return l.clients[turn%len(l.clients)].DialContext(ctx, "tcp", netip.AddrPortFrom(address, servedPort).String())
}

// exchange sends a line and reads it back.
func exchange(c net.Conn, lines *bufio.Reader, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "request\n"); err != nil {
		return err
	}
	_, err := lines.ReadString('\n')
	return err
}

// useLong sends requests on a long connection until the load or the connection ends.
func (l *load) useLong(ctx context.Context, address netip.Addr, c net.Conn) {
	defer c.Close()
	lines := bufio.NewReader(c)
	for ctx.Err() == nil {
		if err := exchange(c, lines, longTimeout); err != nil {
			l.mu.Lock()
			l.lost[address]++
			l.mu.Unlock()
			return
		}
		_ = pause(ctx, requestEvery)
	}
	l.mu.Lock()
	l.kept[address]++
	l.mu.Unlock()
}

// makeNew makes new connections to one address after another, at an even rate.
func (l *load) makeNew(ctx context.Context, addresses []netip.Addr) {
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
			// The end of the load does not interrupt a request.
			c, err := l.dial(context.WithoutCancel(ctx), i/len(addresses), address)
			if err == nil {
				err = exchange(c, bufio.NewReader(c), newTimeout)
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

// stop ends the load, and returns the result for a gateway that failed at this time. affected reports whether an address was one of the
// gateway's.
func (l *load) stop(at time.Time, affected func(netip.Addr) bool) (r Result) {
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
		if finished := q.began.Add(q.took); q.err == nil && affected(q.address) && finished.Before(ended) {
			answered = append(answered, finished)
		}
	}
	slices.SortFunc(answered, time.Time.Compare)
	for i, t := range append(answered[1:], ended) {
		r.Gap = max(r.Gap, t.Sub(answered[i]))
	}
	for address, n := range l.kept {
		if affected(address) {
			r.Kept += n
		}
	}
	for address, n := range l.lost {
		if affected(address) {
			r.Lost += n
		} else {
			r.LostByOthers += n
		}
	}
	return r
}

// repeated reports whether packets of the connection were sent again (TCP_INFO, tcp(7)).
func repeated(c net.Conn) (result bool) {
	_ = descriptor.With(c.(*net.TCPConn), func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		result = err == nil && info.Total_retrans > 0
		return err
	})
	return result
}

// minRetransmission is the shortest time after which Linux sends an unacknowledged packet again (TCP_RTO_MIN).
const minRetransmission = 200 * time.Millisecond

// lost reports whether packets of the request were lost. A late answer alone comes from a busy host. A packet that was sent again sooner was
// not lost: if the last connection from a port ended while the gateway's link was down, the gateway still has that connection. It answers the
// new SYN with an ACK of the old connection (RFC 5961, 4.2), which ends that connection, and the SYN is sent again at once.
func (r request) lost() bool { return r.err != nil || r.repeated && r.took >= minRetransmission }

// longestLoss returns how long after this time packets of requests were lost. The load must have stopped.
func (l *load) longestLoss(at time.Time) (longest time.Duration) {
	for _, q := range l.requests {
		if !q.began.Before(at) && q.lost() {
			longest = max(longest, q.began.Sub(at))
		}
	}
	return longest
}
