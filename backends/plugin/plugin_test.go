package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"kubelb.k8c.io/backends/dataplane"
	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
	"kubelb.k8c.io/core/model"
)

// overTheWire serves the dataplane through gRPC in this process, and returns the manager's side.
func overTheWire(t *testing.T, d dataplane.Dataplane) (dataplane.Dataplane, *grpc.ClientConn) {
	t.Helper()
	connection, server := goplugin.TestGRPCConn(t, func(s *grpc.Server) {
		require.NoError(t, (&grpcPlugin{implementation: d}).GRPCServer(nil, s))
	})
	t.Cleanup(func() {
		connection.Close()
		server.Stop()
	})
	return &client{pb.NewDataplaneClient(connection)}, connection
}

func bigSnapshot(pools, endpoints, frontends int) model.Snapshot {
	var s model.Snapshot
	for i := range pools {
		p := model.Pool{ID: model.PoolID(fmt.Sprintf("a/%04d", i)), Tenant: "a"}
		for j := range endpoints {
			a := netip.AddrFrom4([4]byte{10, byte(i), byte(j / 256), byte(j)})
			p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: uint16(j%7 + 1), State: model.EndpointState(j % 3)})
		}
		s.Pools = append(s.Pools, p)
	}
	for i := range frontends {
		f := model.Frontend{
			FrontendKey: model.FrontendKey{VIP: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), Protocol: model.TCP, Port: uint16(i + 1)},
			Owner:       model.ObjectName{Namespace: "tenant-a", Name: fmt.Sprint(i)}, Tenant: "a", Pool: "a/0000", TargetPort: 30000,
			Forwarding: model.Forwarding(i % 3), AffinityTimeout: time.Duration(i%2) * time.Minute, Restricted: i%2 == 0, IdleTimeout: time.Duration(i%4) * time.Second,
			ProxyProtocol: i%5 == 0, MaxConnections: uint32(i), MaxNewPerSecond: uint32(2 * i),
		}
		if f.Restricted {
			f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}
		s.Frontends = append(s.Frontends, f)
	}
	return s.Canonical()
}

func TestEverythingCrossesTheWireUnchanged(t *testing.T) {
	fake := &dataplane.Fake{}
	d, _ := overTheWire(t, fake)
	ctx := t.Context()
	description, err := d.Describe(ctx)
	require.NoError(t, err)
	require.Equal(t, "fake", description.Name)
	require.Contains(t, description.Features, dataplane.Direct)
	config := dataplane.Config{StateDir: t.TempDir(), Options: map[string]string{"k": "v"}}
	require.NoError(t, d.Configure(ctx, config))
	description, err = d.Describe(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"state directory: " + config.StateDir}, description.Notes)

	// More than one gRPC message of 4 MiB could hold.
	want := bigSnapshot(100, 1000, 5000)
	change := dataplane.Change{Next: dataplane.Generation{Epoch: "e", Number: 1}, Delta: model.Difference(model.NewDigests(), want)}
	result, err := d.Apply(ctx, change)
	require.NoError(t, err)
	require.Empty(t, result.Failed)
	require.Equal(t, change.Next, result.Generation)
	require.EqualValues(t, 5100, result.Operations)
	require.Equal(t, change, fake.Changes[0])
	applied, err := d.Applied(ctx)
	require.NoError(t, err)
	require.Equal(t, want.Digests(), applied.Digests)
	require.Equal(t, change.Next, applied.Generation)
	text, err := d.Render(ctx, want)
	require.NoError(t, err)
	require.Equal(t, want.Text(), text)
	stats, err := d.Stats(ctx)
	require.NoError(t, err)
	require.Len(t, stats.Frontends, 5000)
	require.EqualValues(t, 5000, stats.Proxied)
}

func TestDeletesAndBadRecordsCrossTheWire(t *testing.T) {
	fake := &dataplane.Fake{Refuse: func(record string) string {
		if record == "frontend TCP 203.0.113.1:2" {
			return "no"
		}
		return ""
	}}
	d, _ := overTheWire(t, fake)
	s := bigSnapshot(2, 1, 3)
	first := dataplane.Generation{Epoch: "e", Number: 1}
	result, err := d.Apply(t.Context(), dataplane.Change{Next: first, Delta: model.Difference(model.NewDigests(), s)})
	require.NoError(t, err)
	require.Equal(t, []dataplane.RecordError{{Frontend: s.Frontends[1].FrontendKey, Message: "no"}}, result.Failed)
	_, err = d.Apply(t.Context(), dataplane.Change{Base: first, Next: dataplane.Generation{Epoch: "e", Number: 2}, Delta: model.Delta{
		DeleteFrontends: []model.FrontendKey{s.Frontends[0].FrontendKey, s.Frontends[2].FrontendKey}, DeletePools: []model.PoolID{"a/0000"}}})
	require.NoError(t, err)
	require.Equal(t, s.Pools[1].Text(), fake.Dump())
}

func TestAWrongBaseAsksForAResync(t *testing.T) {
	d, _ := overTheWire(t, &dataplane.Fake{})
	_, err := d.Apply(t.Context(), dataplane.Change{Base: dataplane.Generation{Epoch: "other", Number: 7}})
	require.ErrorIs(t, err, dataplane.ErrResync)
	require.ErrorContains(t, err, "other/7")
}

func TestAnIncompleteStreamChangesNothing(t *testing.T) {
	fake := &dataplane.Fake{}
	_, connection := overTheWire(t, fake)
	stream, err := pb.NewDataplaneClient(connection).Apply(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&pb.ApplyChunk{Base: &pb.Generation{}, Next: &pb.Generation{Epoch: "e", Number: 1}, UpsertPools: []*pb.Pool{{Id: "a/p", Tenant: "a"}}}))
	_, err = stream.CloseAndRecv()
	require.ErrorContains(t, err, "ended early")
	require.Empty(t, fake.Changes)
}

func TestAMalformedRecordIsAnError(t *testing.T) {
	fake := &dataplane.Fake{}
	_, connection := overTheWire(t, fake)
	stream, err := pb.NewDataplaneClient(connection).Apply(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&pb.ApplyChunk{Next: &pb.Generation{}, End: true, UpsertFrontends: []*pb.Frontend{{Key: &pb.FrontendKey{Vip: []byte{1, 2, 3}}}}}))
	_, err = stream.CloseAndRecv()
	require.ErrorContains(t, err, "address of 3 bytes")
	require.Empty(t, fake.Changes)
}

type faulty struct {
	dataplane.Fake
	faults chan dataplane.Fault
}

// Watch reports the faults of the test.
func (f *faulty) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	select {
	case fault := <-f.faults:
		report(fault)
		return errors.New("the proxy died")
	case <-ctx.Done():
		return nil
	}
}

func TestFaultsAndTheEndOfWatchReachTheManager(t *testing.T) {
	backend := &faulty{faults: make(chan dataplane.Fault, 1)}
	d, _ := overTheWire(t, backend)
	sent := dataplane.Fault{Time: time.Unix(5, 6), Message: "table gone", Resync: true}
	backend.faults <- sent
	var got []dataplane.Fault
	err := d.Watch(t.Context(), func(f dataplane.Fault) { got = append(got, f) })
	require.ErrorContains(t, err, "the proxy died")
	require.Equal(t, []dataplane.Fault{sent}, got)
}

func TestOneProcessAtATimeWorksOnAStateDirectory(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockStateDir(t.Context(), dir)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = lockStateDir(ctx, dir)
	require.ErrorContains(t, err, "another plugin uses the state directory "+dir)
	require.NoError(t, lock.Close())
	next, err := lockStateDir(t.Context(), dir)
	require.NoError(t, err)
	require.NoError(t, next.Close())
}

func TestFindNamesWhatIsMissing(t *testing.T) {
	_, err := Find("nosuch")
	require.ErrorContains(t, err, "no binary kubelb-backend-nosuch")
	path, err := Find("./some/backend")
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(path))
}

func TestAWrongChecksumStartsNothing(t *testing.T) {
	_, err := Load(Options{Path: "/bin/true", Checksum: "beef", SocketDir: t.TempDir()})
	require.ErrorContains(t, err, "not a SHA-256")
	_, err = Load(Options{Path: "/bin/true", Checksum: fmt.Sprintf("%064x", 1), SocketDir: t.TempDir(), Log: os.Stderr})
	require.ErrorContains(t, err, "checksum")
}
