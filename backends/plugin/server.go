package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"kubelb.k8c.io/backends/dataplane"
	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
	"kubelb.k8c.io/core/model"
)

// protocolVersion is the version of the contract. Both sides must offer it.
const protocolVersion = 1

// handshake lets a plugin that a person starts by hand say that it is a plugin. It is no security measure.
var handshake = goplugin.HandshakeConfig{MagicCookieKey: "KUBELB_DATAPLANE", MagicCookieValue: "1"}

// pluginName is the name in go-plugin's set of plugins, which has only this one.
const pluginName = "dataplane"

// lifelineDescriptor is the read end of a pipe whose write end the manager has: it is closed when the manager ends.
const lifelineDescriptor = 3

// Serve serves the dataplane as a plugin of the process that started this one. It returns when that process ends the plugin, and
// has two seconds to end by itself then. This process exits when that process ends.
//
// Serve wraps the dataplane with dataplane.Checked, refuses malformed messages, makes the state directory before Configure, and
// holds the lock in it. It calls the dataplane from several goroutines, one call at a time, except for Watch, Describe, Preflight
// and Render. A program calls Serve once, in main, and writes nothing to its standard output before.
func Serve(d dataplane.Dataplane) {
	if os.Getenv(handshake.MagicCookieKey) == handshake.MagicCookieValue {
		go exitWithParent(os.NewFile(lifelineDescriptor, "lifeline"))
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: map[int]goplugin.PluginSet{protocolVersion: {pluginName: &grpcPlugin{implementation: dataplane.Checked(d)}}},
		GRPCServer:       grpcServer(os.Stderr),
		// go-plugin itself would write several lines for each start.
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr}),
	})
}

// grpcServer returns a factory of servers that, at the first call, make this process write to its own standard error again. go-plugin
// has replaced os.Stdout and os.Stderr by pipes, whose content the manager would get later, by calls. Then the last
// words of a process that ends at once would be lost.
func grpcServer(stderr *os.File) func([]grpc.ServerOption) *grpc.Server {
	restore := sync.OnceFunc(func() { os.Stdout, os.Stderr = stderr, stderr })
	return func(options []grpc.ServerOption) *grpc.Server {
		return grpc.NewServer(append(options,
			grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
				restore()
				return handle(ctx, request)
			}),
			grpc.ChainStreamInterceptor(func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
				restore()
				return handle(server, stream)
			}))...)
	}
}

// exitWithParent ends this process at once when the process that started it ends: its changes are atomic, and the next plugin
// waits for the lock.
func exitWithParent(lifeline *os.File) {
	if _, err := lifeline.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
		os.Exit(0)
	}
}

// grpcPlugin implements go-plugin's interface.
type grpcPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	implementation dataplane.Dataplane
}

var _ goplugin.GRPCPlugin = (*grpcPlugin)(nil)

// GRPCServer registers the dataplane.
func (p *grpcPlugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	pb.RegisterDataplaneServer(s, &server{dataplane: p.implementation, turn: make(chan struct{}, 1)})
	return nil
}

// GRPCClient returns the manager's side.
func (p *grpcPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return &client{wire: pb.NewDataplaneClient(c)}, nil
}

// server serves a dataplane over gRPC.
type server struct {
	pb.UnimplementedDataplaneServer
	dataplane dataplane.Dataplane
	// turn has one token while a call that uses state runs, so that there is one such call at a time.
	turn chan struct{}
	// lock is held on the state directory for the life of the process.
	lock *os.File
}

func (s *server) enter(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *server) leave() { <-s.turn }

// Describe answers with name, version, features and notes.
func (s *server) Describe(ctx context.Context, _ *pb.DescribeRequest) (*pb.Description, error) {
	d, err := s.dataplane.Describe(ctx)
	out := &pb.Description{Name: d.Name, Version: d.Version}
	for _, note := range d.Notes {
		out.Notes = append(out.Notes, printable(note))
	}
	for _, f := range d.Features {
		out.Features = append(out.Features, string(f))
	}
	return out, err
}

// Preflight answers with the checks. It changes nothing, so it waits for no other call and takes no lock.
func (s *server) Preflight(ctx context.Context, in *pb.Configuration) (*pb.PreflightResponse, error) {
	checks, err := s.dataplane.Preflight(ctx, configFromWire(in))
	out := &pb.PreflightResponse{}
	for _, check := range checks {
		out.Checks = append(out.Checks, checkToWire(check))
	}
	return out, err
}

// Configure takes the lock on the state directory, then configures the dataplane.
func (s *server) Configure(ctx context.Context, in *pb.Configuration) (*pb.ConfigureResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	config := configFromWire(in)
	if s.lock == nil {
		var err error
		if s.lock, err = lockStateDir(ctx, config.StateDir); err != nil {
			return nil, err
		}
	}
	return &pb.ConfigureResponse{}, s.dataplane.Configure(ctx, config)
}

// lockWait bounds how long a plugin waits for the former one to end.
const lockWait = 10 * time.Second

// lockStateDir ensures that only one process writes for this gateway. The kernel releases the lock when the process ends.
func lockStateDir(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another plugin uses the state directory %s; stop it, or give this gateway a state directory of its own", dir), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Applied streams the digests of the records that the dataplane holds.
func (s *server) Applied(_ *pb.AppliedRequest, stream grpc.ServerStreamingServer[pb.AppliedChunk]) error {
	if err := s.enter(stream.Context()); err != nil {
		return err
	}
	defer s.leave()
	applied, err := s.dataplane.Applied(stream.Context())
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.AppliedChunk{Generation: generationToWire(applied.Generation)}); err != nil {
		return err
	}
	var pools []*pb.PoolDigest
	for id, digest := range applied.Pools {
		pools = append(pools, &pb.PoolDigest{Id: string(id), Digest: string(digest)})
	}
	same := func(d *pb.PoolDigest) *pb.PoolDigest { return d }
	err = sendChunks(pools, same, oneUnit, func(c []*pb.PoolDigest) error { return stream.Send(&pb.AppliedChunk{Pools: c}) })
	if err != nil {
		return err
	}
	var frontends []*pb.FrontendDigest
	for key, digest := range applied.Frontends {
		frontends = append(frontends, &pb.FrontendDigest{Key: keyToWire(key), Digest: string(digest)})
	}
	sameFrontend := func(d *pb.FrontendDigest) *pb.FrontendDigest { return d }
	return sendChunks(frontends, sameFrontend, oneUnit, func(c []*pb.FrontendDigest) error { return stream.Send(&pb.AppliedChunk{Frontends: c}) })
}

// Apply collects the whole stream, and then applies it.
func (s *server) Apply(stream grpc.ClientStreamingServer[pb.ApplyChunk, pb.ApplyResponse]) error {
	change, failed, err := receiveChange(stream)
	if err != nil {
		return err
	}
	if err := s.enter(stream.Context()); err != nil {
		return err
	}
	defer s.leave()
	result, err := s.dataplane.Apply(stream.Context(), change)
	if errors.Is(err, dataplane.ErrResync) {
		return stream.SendAndClose(&pb.ApplyResponse{Resync: printable(err.Error())})
	}
	if err != nil {
		return err
	}
	response := &pb.ApplyResponse{Generation: generationToWire(result.Generation), Operations: result.Operations}
	for _, e := range append(failed, result.Failed...) {
		response.Failed = append(response.Failed, recordErrorToWire(e))
	}
	return stream.SendAndClose(response)
}

// receiveChange collects a change, and errors for records that are malformed.
func receiveChange(stream grpc.ClientStreamingServer[pb.ApplyChunk, pb.ApplyResponse]) (change dataplane.Change, failed []dataplane.RecordError, err error) {
	for {
		chunk, err := stream.Recv()
		if err != nil {
			return change, failed, fmt.Errorf("apply stream ended early: %w", err)
		}
		if chunk.Next != nil {
			change.Base, change.Next = generationFromWire(chunk.Base), generationFromWire(chunk.Next)
		}
		malformed, err := addChunk(&change.Delta, chunk)
		if err != nil {
			return change, failed, err
		}
		failed = append(failed, malformed...)
		if chunk.End {
			return change, failed, nil
		}
	}
}

// addChunk adds the records of the chunk to the delta. A malformed record fails alone if it has a valid name. Otherwise the
// change fails.
func addChunk(d *model.Delta, chunk *pb.ApplyChunk) (failed []dataplane.RecordError, err error) {
	for _, wire := range chunk.UpsertPools {
		p, err := poolFromWire(wire)
		switch {
		case err == nil:
			d.UpsertPools = append(d.UpsertPools, p)
		case p.ID == "":
			return failed, err
		default:
			failed = append(failed, dataplane.RecordError{Pool: p.ID, Message: err.Error()})
		}
	}
	for _, wire := range chunk.UpsertFrontends {
		f, err := frontendFromWire(wire)
		switch {
		case err == nil:
			d.UpsertFrontends = append(d.UpsertFrontends, f)
		case !f.VIP.IsValid():
			return failed, err
		default:
			failed = append(failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: err.Error()})
		}
	}
	for _, id := range chunk.DeletePools {
		d.DeletePools = append(d.DeletePools, model.PoolID(id))
	}
	d.DeleteFrontends, err = fromWire(chunk.DeleteFrontends, keyFromWire, d.DeleteFrontends)
	return failed, err
}

// Render collects the snapshot and streams its text.
func (s *server) Render(stream grpc.BidiStreamingServer[pb.SnapshotChunk, pb.TextChunk]) error {
	var snapshot model.Snapshot
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if snapshot.Pools, err = fromWire(chunk.Pools, poolFromWire, snapshot.Pools); err != nil {
			return err
		}
		if snapshot.Frontends, err = fromWire(chunk.Frontends, frontendFromWire, snapshot.Frontends); err != nil {
			return err
		}
	}
	text, err := s.dataplane.Render(stream.Context(), snapshot)
	if err != nil {
		return err
	}
	text = printable(text)
	const piece = 1 << 20
	for len(text) > 0 {
		n := min(piece, len(text))
		for n < len(text) && !utf8.RuneStart(text[n]) {
			n-- // gRPC does not send a part of a character
		}
		if err := stream.Send(&pb.TextChunk{Text: text[:n]}); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

// Stats streams the counters.
func (s *server) Stats(_ *pb.StatsRequest, stream grpc.ServerStreamingServer[pb.StatsChunk]) error {
	if err := s.enter(stream.Context()); err != nil {
		return err
	}
	defer s.leave()
	stats, err := s.dataplane.Stats(stream.Context())
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.StatsChunk{Drops: stats.Drops, Proxied: stats.Proxied}); err != nil {
		return err
	}
	var frontends []*pb.FrontendCounter
	for key, c := range stats.Frontends {
		frontends = append(frontends, &pb.FrontendCounter{Key: keyToWire(key), Counter: counterToWire(c)})
	}
	same := func(c *pb.FrontendCounter) *pb.FrontendCounter { return c }
	err = sendChunks(frontends, same, oneUnit, func(c []*pb.FrontendCounter) error { return stream.Send(&pb.StatsChunk{Frontends: c}) })
	if err != nil {
		return err
	}
	var endpoints []*pb.EndpointCounter
	for key, c := range stats.Endpoints {
		endpoints = append(endpoints, &pb.EndpointCounter{Pool: string(key.Pool), Endpoint: key.Endpoint, Counter: counterToWire(c)})
	}
	sameEndpoint := func(c *pb.EndpointCounter) *pb.EndpointCounter { return c }
	return sendChunks(endpoints, sameEndpoint, oneUnit, func(c []*pb.EndpointCounter) error { return stream.Send(&pb.StatsChunk{Endpoints: c}) })
}

// Watch streams faults until the manager ends the call.
func (s *server) Watch(_ *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.Fault]) error {
	faults := make(chan dataplane.Fault, 16)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		done <- s.dataplane.Watch(ctx, func(f dataplane.Fault) {
			select {
			case faults <- f:
			case <-ctx.Done():
			}
		})
	}()
	for {
		select {
		case f := <-faults:
			if err := stream.Send(&pb.Fault{TimeUnixNanoseconds: f.Time.UnixNano(), Message: printable(f.Message), Resync: f.Resync}); err != nil {
				return err
			}
		case err := <-done:
			return err
		}
	}
}

// Close ends the plugin's work.
func (s *server) Close(ctx context.Context, in *pb.CloseRequest) (*pb.CloseResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	return &pb.CloseResponse{}, s.dataplane.Close(ctx, in.Purge)
}
