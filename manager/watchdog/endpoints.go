package watchdog

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"kubelb.k8c.io/manager/connect"
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
			accepted, err := connect.Try(ctx, e.String(), w.times.askWithin, w.times.holdFor)
			if ends[i] = accepted && err != nil; !accepted {
				errs[i] = err
			}
			return nil
		})
	}
	_ = connecting.Wait() // none returns an error
	h.refused = !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, syscall.ECONNREFUSED) })
	for i, err := range errs {
		if err != nil {
			h.silent = append(h.silent, fmt.Sprintf("%s (%s)", q.endpoints[i], connect.Cause(err)))
		}
		h.ends = h.ends || ends[i]
	}
	return h
}

// note records the result of a question.
func (w *Watchdog) note(h hearing) {
	h.of.asking, h.of.endpoints, w.fresh = false, h, true
	if h.of.history.failed() > 0 {
		h.of.former, h.of.doubted = "", false // a try of now failed, and this is what its endpoints do now
	}
	if w.asking[h.of.Tenant]--; w.asking[h.of.Tenant] == 0 {
		delete(w.asking, h.of.Tenant)
	}
}
