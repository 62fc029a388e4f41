package watchdog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// question names the endpoints of a frontend to which the host is to connect itself.
type question struct {
	of        *watched
	endpoints []netip.AddrPort
}

// hearing is the result of a question.
type hearing struct {
	of *watched
	at time.Time
	// asked counts the endpoints. silent are the endpoints that took no connection, with the reason. ends: an endpoint ended its connection before a byte
	// of data.
	asked  int
	silent []string
	ends   bool
	// refused: each endpoint that was asked refused the connection.
	refused bool
}

// ask queues a question about a frontend. If too many are being asked, it does nothing, and the next failed try calls it again.
func (w *Watchdog) ask(is *watched) {
	if w.asking[is.Tenant] >= askPerTenant {
		return
	}
	select {
	case w.asks <- question{is, slices.Clone(is.Endpoints[:min(len(is.Endpoints), asked)])}:
		is.asking = true
		w.asking[is.Tenant]++
	default:
	}
}

// askEndpoints answers questions until ctx ends.
func (w *Watchdog) askEndpoints(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-w.asks:
			select {
			case w.heard <- w.hear(ctx, q):
			case <-ctx.Done():
			}
		}
	}
}

// hear connects to endpoints by sockets of the host. Such connections do not pass the dataplane.
func (w *Watchdog) hear(ctx context.Context, q question) hearing {
	h := hearing{of: q.of, at: time.Now(), asked: len(q.endpoints)}
	errs, ends := make([]error, h.asked), make([]bool, h.asked)
	var connecting errgroup.Group
	for i, e := range q.endpoints {
		connecting.Go(func() error {
			ends[i], errs[i] = w.connect(ctx, e)
			return nil
		})
	}
	_ = connecting.Wait() // none returns an error
	h.refused = !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, syscall.ECONNREFUSED) })
	for i, err := range errs {
		if err != nil {
			h.silent = append(h.silent, fmt.Sprintf("%s (%s)", q.endpoints[i], cause(err)))
		}
		h.ends = h.ends || ends[i]
	}
	return h
}

// connect connects to an endpoint, and tells whether the endpoint ends the connection before a byte of data.
func (w *Watchdog) connect(ctx context.Context, to netip.AddrPort) (ends bool, err error) {
	conn, err := (&net.Dialer{Timeout: w.times.askWithin}).DialContext(ctx, "tcp", to.String())
	if errors.Is(err, syscall.ECONNRESET) {
		return true, nil // the connection was there before that was seen; else it is refused
	}
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(w.times.holdFor)); err != nil {
		return false, err
	}
	_, err = conn.Read(make([]byte, 1))
	timeout, waited := errors.AsType[net.Error](err)
	return err != nil && !(waited && timeout.Timeout()), nil
}

// cause is why a connection could not be made, in few words.
func cause(err error) string {
	if timeout, is := errors.AsType[net.Error](err); is && timeout.Timeout() {
		return "no answer"
	}
	if number, is := errors.AsType[syscall.Errno](err); is {
		return number.Error()
	}
	return err.Error()
}

// note records the result of a question.
func (w *Watchdog) note(h hearing) {
	h.of.asking, h.of.endpoints, w.fresh = false, h, true
	if w.asking[h.of.Tenant]--; w.asking[h.of.Tenant] == 0 {
		delete(w.asking, h.of.Tenant)
	}
}
