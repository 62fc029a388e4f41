package envoy

import (
	"context"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// launchNumber returns the launch of the Envoy that makes the request, 0 if it is unknown.
func launchNumber(ctx context.Context) int {
	for _, text := range metadata.ValueFromIncomingContext(ctx, launchHeader) {
		if n, err := strconv.Atoi(text); err == nil {
			return n
		}
	}
	return 0
}

// current returns the launch that has to accept changes: the leading one, or the latest one if none leads. The caller holds the
// lock.
func (x *xds) current() int {
	current := x.leadingLaunch
	for _, s := range x.streams {
		if x.leadingLaunch == 0 {
			current = max(current, s.launch)
		}
	}
	return current
}

// setLeading makes a launch the leading one, and ends the streams of former ones. The caller holds the lock.
func (x *xds) setLeading(launch int) {
	x.leadingLaunch = launch
	for _, s := range x.streams {
		if s.launch < launch {
			s.superseded()
		}
	}
	for old := range x.outcomes {
		if old < launch {
			delete(x.outcomes, old)
		}
	}
}

type cancelKey struct{}

// cancelOf returns a function that ends the stream of the context.
func cancelOf(ctx context.Context) context.CancelFunc {
	cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc)
	if !ok {
		return func() {}
	}
	return cancel
}

// endWhenCancelled returns from a stream at once when the function of cancelOf is called, so that the server ends it.
func endWhenCancelled(service any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- handle(service, cancellableStream{s, context.WithValue(ctx, cancelKey{}, cancel)})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return status.Error(codes.FailedPrecondition, "another Envoy has replaced this one")
	}
}

// cancellableStream is a stream with a context for cancelOf.
type cancellableStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s cancellableStream) Context() context.Context { return s.ctx }
