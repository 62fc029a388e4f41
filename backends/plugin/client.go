package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kubelb.k8c.io/backends/dataplane"
	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
	"kubelb.k8c.io/core/model"
)

// client calls a plugin over gRPC.
type client struct{ wire pb.DataplaneClient }

var _ dataplane.Dataplane = (*client)(nil)

// ErrUnreachable says that the plugin's process has ended, or no longer serves.
var ErrUnreachable = errors.New("the plugin is not reachable")

// unwrap returns an error of the plugin itself, or of a deadline, without gRPC's wrapping.
func unwrap(err error) error {
	s, ok := status.FromError(err)
	switch {
	case ok && s.Code() == codes.Unknown:
		return errors.New(s.Message())
	case ok && s.Code() == codes.DeadlineExceeded:
		return context.DeadlineExceeded // the plugin may notice it a moment before this side does
	case ok && s.Code() == codes.Unavailable:
		return fmt.Errorf("%w: %s", ErrUnreachable, s.Message())
	}
	return err
}

// Describe asks for name, version, features and notes.
func (c *client) Describe(ctx context.Context) (dataplane.Description, error) {
	d, err := c.wire.Describe(ctx, &pb.DescribeRequest{})
	out := dataplane.Description{Name: d.GetName(), Version: d.GetVersion(), Notes: d.GetNotes()}
	for _, f := range d.GetFeatures() {
		out.Features = append(out.Features, dataplane.Feature(f))
	}
	return out, unwrap(err)
}

// Preflight asks for the checks. A plugin that does not know this call has none.
func (c *client) Preflight(ctx context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	response, err := c.wire.Preflight(ctx, configToWire(config))
	if status.Code(err) == codes.Unimplemented {
		return nil, nil
	}
	var out []dataplane.Check
	for _, check := range response.GetChecks() {
		out = append(out, checkFromWire(check))
	}
	return out, unwrap(err)
}

// Configure sends the configuration.
func (c *client) Configure(ctx context.Context, config dataplane.Config) error {
	_, err := c.wire.Configure(ctx, configToWire(config))
	return unwrap(err)
}

// Applied collects the digests.
func (c *client) Applied(ctx context.Context) (dataplane.Applied, error) {
	applied := dataplane.Applied{Digests: model.NewDigests()}
	stream, err := c.wire.Applied(ctx, &pb.AppliedRequest{})
	if err != nil {
		return applied, unwrap(err)
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return applied, nil
		}
		if err != nil {
			return applied, unwrap(err)
		}
		if chunk.Generation != nil {
			applied.Generation = generationFromWire(chunk.Generation)
		}
		for _, d := range chunk.Pools {
			applied.Pools[model.PoolID(d.Id)] = model.Digest(d.Digest)
		}
		for _, d := range chunk.Frontends {
			key, err := keyFromWire(d.Key)
			if err != nil {
				return applied, fmt.Errorf("answer to Applied: %w", err)
			}
			applied.Frontends[key] = model.Digest(d.Digest)
		}
	}
}

// Apply streams the change.
func (c *client) Apply(ctx context.Context, change dataplane.Change) (dataplane.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.wire.Apply(ctx)
	if err != nil {
		return dataplane.Result{}, unwrap(err)
	}
	// A send that fails only says that the stream has ended. The response has the reason.
	if err := sendChange(stream.Send, change); err != nil && !errors.Is(err, io.EOF) {
		return dataplane.Result{}, unwrap(err)
	}
	response, err := stream.CloseAndRecv()
	if err != nil {
		return dataplane.Result{}, unwrap(err)
	}
	if response.Resync != "" {
		return dataplane.Result{}, fmt.Errorf("%s: %w", strings.TrimSuffix(response.Resync, ": "+dataplane.ErrResync.Error()), dataplane.ErrResync)
	}
	result := dataplane.Result{Generation: generationFromWire(response.Generation), Operations: response.Operations}
	for _, e := range response.Failed {
		failed, err := recordErrorFromWire(e)
		if err != nil {
			return dataplane.Result{}, fmt.Errorf("answer to Apply: %w", err)
		}
		result.Failed = append(result.Failed, failed)
	}
	return result, nil
}

func sendChange(send func(*pb.ApplyChunk) error, change dataplane.Change) error {
	if err := send(&pb.ApplyChunk{Base: generationToWire(change.Base), Next: generationToWire(change.Next)}); err != nil {
		return err
	}
	err := sendChunks(change.UpsertPools, poolToWire, poolUnits, func(c []*pb.Pool) error { return send(&pb.ApplyChunk{UpsertPools: c}) })
	if err != nil {
		return err
	}
	err = sendChunks(change.UpsertFrontends, frontendToWire, frontendUnits, func(c []*pb.Frontend) error { return send(&pb.ApplyChunk{UpsertFrontends: c}) })
	if err != nil {
		return err
	}
	err = sendChunks(change.DeleteFrontends, keyToWire, oneUnit, func(c []*pb.FrontendKey) error { return send(&pb.ApplyChunk{DeleteFrontends: c}) })
	if err != nil {
		return err
	}
	err = sendChunks(change.DeletePools, poolIDToWire, oneUnit, func(c []string) error { return send(&pb.ApplyChunk{DeletePools: c}) })
	if err != nil {
		return err
	}
	return send(&pb.ApplyChunk{End: true})
}

// Render streams the snapshot and collects the text.
func (c *client) Render(ctx context.Context, snapshot model.Snapshot) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.wire.Render(ctx)
	if err != nil {
		return "", unwrap(err)
	}
	err = sendChunks(snapshot.Pools, poolToWire, poolUnits, func(p []*pb.Pool) error { return stream.Send(&pb.SnapshotChunk{Pools: p}) })
	if err == nil {
		err = sendChunks(snapshot.Frontends, frontendToWire, frontendUnits, func(f []*pb.Frontend) error { return stream.Send(&pb.SnapshotChunk{Frontends: f}) })
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", unwrap(err)
	}
	if err := stream.CloseSend(); err != nil {
		return "", unwrap(err)
	}
	var text strings.Builder
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text.String(), nil
		}
		if err != nil {
			return "", unwrap(err)
		}
		text.WriteString(chunk.Text)
	}
}

// Stats collects the counters.
func (c *client) Stats(ctx context.Context) (dataplane.Stats, error) {
	stats := dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{}, Endpoints: map[dataplane.EndpointKey]dataplane.Counter{}, Drops: map[string]uint64{}}
	stream, err := c.wire.Stats(ctx, &pb.StatsRequest{})
	if err != nil {
		return stats, unwrap(err)
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stats, nil
		}
		if err != nil {
			return stats, unwrap(err)
		}
		stats.Proxied += chunk.Proxied
		for reason, n := range chunk.Drops {
			stats.Drops[reason] = n
		}
		for _, f := range chunk.Frontends {
			key, err := keyFromWire(f.Key)
			if err != nil {
				return stats, fmt.Errorf("answer to Stats: %w", err)
			}
			stats.Frontends[key] = counterFromWire(f.Counter)
		}
		for _, e := range chunk.Endpoints {
			stats.Endpoints[dataplane.EndpointKey{Pool: model.PoolID(e.Pool), Endpoint: e.Endpoint}] = counterFromWire(e.Counter)
		}
	}
}

// Watch reports faults until ctx ends or the plugin does.
func (c *client) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	stream, err := c.wire.Watch(ctx, &pb.WatchRequest{})
	if err != nil {
		return unwrap(err)
	}
	for {
		f, err := stream.Recv()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return unwrap(err)
		}
		report(dataplane.Fault{Time: time.Unix(0, f.TimeUnixNanoseconds), Message: f.Message, Resync: f.Resync})
	}
}

// Close ends the plugin's work.
func (c *client) Close(ctx context.Context, purge bool) error {
	_, err := c.wire.Close(ctx, &pb.CloseRequest{Purge: purge})
	return unwrap(err)
}
