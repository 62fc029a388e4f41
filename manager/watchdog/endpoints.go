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

// endpointRequest names the endpoints of a frontend to which the host is to connect itself.
type endpointRequest struct {
	frontendState *frontendState
	endpoints     []netip.AddrPort
}

// endpointResult is the result of an endpointRequest.
type endpointResult struct {
	frontendState *frontendState
	at            time.Time
	// count is the number of endpoints. silent are the endpoints that accepted no connection, with the reason. closes: an endpoint ended its
	// connection before a byte of data.
	count  int
	silent []string
	closes bool
	// refused: every endpoint refused the connection.
	refused bool
}

// requestEndpoints queues a request for a frontend. If there are too many requests it does nothing, and the next failed try calls it again.
func (w *Watchdog) requestEndpoints(state *frontendState) {
	if w.requested[state.Tenant] >= maxRequestsPerTenant {
		return
	}
	select {
	case w.requests <- endpointRequest{state, slices.Clone(state.Endpoints[:min(len(state.Endpoints), maxEndpoints)])}:
		state.requested = true
		w.requested[state.Tenant]++
	default:
	}
}

// checkEndpoints handles requests until ctx ends.
func (w *Watchdog) checkEndpoints(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case request := <-w.requests:
			select {
			case w.results <- w.connectTo(ctx, request):
			case <-ctx.Done():
			}
		}
	}
}

// connectTo connects to endpoints by sockets of the host. Such connections do not pass the dataplane.
func (w *Watchdog) connectTo(ctx context.Context, request endpointRequest) endpointResult {
	result := endpointResult{frontendState: request.frontendState, at: time.Now(), count: len(request.endpoints)}
	errs, closed := make([]error, result.count), make([]bool, result.count)
	var connecting errgroup.Group
	for i, e := range request.endpoints {
		connecting.Go(func() error {
			accepted, err := connect.Try(ctx, e.String(), w.times.connectTimeout, w.times.holdTime)
			if closed[i] = accepted && err != nil; !accepted {
				errs[i] = err
			}
			return nil
		})
	}
	_ = connecting.Wait() // none returns an error
	result.refused = !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, syscall.ECONNREFUSED) })
	for i, err := range errs {
		if err != nil {
			result.silent = append(result.silent, fmt.Sprintf("%s (%s)", request.endpoints[i], connect.Cause(err)))
		}
		result.closes = result.closes || closed[i]
	}
	return result
}

// setEndpoints records the result of a request.
func (w *Watchdog) setEndpoints(result endpointResult) {
	result.frontendState.requested, result.frontendState.endpoints, w.changed = false, result, true
	if result.frontendState.history.failed() > 0 {
		result.frontendState.former, result.frontendState.unconfirmed = "", false // a present try has failed, and this is the present state of the endpoints
	}
	if w.requested[result.frontendState.Tenant]--; w.requested[result.frontendState.Tenant] == 0 {
		delete(w.requested, result.frontendState.Tenant)
	}
}
