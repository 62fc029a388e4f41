package envoy

import (
	"context"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// launchOf is the number of the launch of the Envoy that asks, 0 if it does not tell.
func launchOf(ctx context.Context) int {
	for _, text := range metadata.ValueFromIncomingContext(ctx, launchHeader) {
		if n, err := strconv.Atoi(text); err == nil {
			return n
		}
	}
	return 0
}

// current is the launch that answers for changes: the leading one, or the last that has come while none leads. The caller
// holds the lock.
func (x *xds) current() int {
	current := x.leading
	for _, s := range x.streams {
		if x.leading == 0 {
			current = max(current, s.launch)
		}
	}
	return current
}

// lead makes a launch the leading one, and ends the streams of those before. The caller holds the lock.
func (x *xds) lead(launch int) {
	x.leading = launch
	for _, s := range x.streams {
		if s.launch < launch {
			s.superseded()
		}
	}
	for old := range x.taken {
		if old < launch {
			delete(x.taken, old)
		}
	}
}

type supersessionKey struct{}

// supersession ends the stream of the context.
func supersession(ctx context.Context) context.CancelFunc {
	cancel, ok := ctx.Value(supersessionKey{}).(context.CancelFunc)
	if !ok {
		return func() {}
	}
	return cancel
}

// endWhenSuperseded returns from a stream at once when its supersession is called; the server ends it then.
func endWhenSuperseded(service any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- handle(service, supersedable{s, context.WithValue(ctx, supersessionKey{}, cancel)})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return status.Error(codes.FailedPrecondition, "another Envoy has taken over")
	}
}

// supersedable is a stream with a context that tells how to end it.
type supersedable struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s supersedable) Context() context.Context { return s.ctx }
