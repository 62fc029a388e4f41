package plugin

import (
	"context"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"kubelb.k8c.io/backends/dataplane"
	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
	"kubelb.k8c.io/core/model"
)

// roundTrip parses the bytes as a message, converts it to a record and back, and returns both messages. They are nil if the message is invalid.
func roundTrip[Wire proto.Message, Record any](t *testing.T, data []byte, wire Wire, from func(Wire) (Record, error), to func(Record) Wire) (received, sent proto.Message) {
	if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, wire) != nil {
		return nil, nil
	}
	record, err := from(wire)
	if err != nil {
		require.NotEmpty(t, err.Error())
		return nil, nil
	}
	return wire, to(record)
}

// always is for messages that are always valid.
func always[Wire, Record any](from func(Wire) Record) func(Wire) (Record, error) {
	return func(wire Wire) (Record, error) { return from(wire), nil }
}

// wireKinds are all messages that are converted to records, on either side.
var wireKinds = []struct {
	name      string
	roundTrip func(*testing.T, []byte) (received, sent proto.Message)
}{
	{"Pool", func(t *testing.T, b []byte) (received, sent proto.Message) {
		return roundTrip(t, b, &pb.Pool{}, poolFromWire, poolToWire)
	}},
	{"Frontend", func(t *testing.T, b []byte) (received, sent proto.Message) {
		return roundTrip(t, b, &pb.Frontend{}, frontendFromWire, frontendToWire)
	}},
	{"FrontendKey", func(t *testing.T, b []byte) (received, sent proto.Message) {
		return roundTrip(t, b, &pb.FrontendKey{}, keyFromWire, keyToWire)
	}},
	{"Configuration", func(t *testing.T, b []byte) (received, sent proto.Message) {
		return roundTrip(t, b, &pb.Configuration{}, always(configFromWire), configToWire)
	}},
	{"RecordError", func(t *testing.T, b []byte) (received, sent proto.Message) {
		return roundTrip(t, b, &pb.RecordError{}, recordErrorFromWire, recordErrorToWire)
	}},
	{"Generation", func(t *testing.T, b []byte) (received, sent proto.Message) {
		return roundTrip(t, b, &pb.Generation{}, always(generationFromWire), generationToWire)
	}},
	{"Counter", func(t *testing.T, b []byte) (received, sent proto.Message) {
		return roundTrip(t, b, &pb.Counter{}, always(counterFromWire), counterToWire)
	}},
	{"Check", func(t *testing.T, b []byte) (received, sent proto.Message) {
		received, sent = roundTrip(t, b, &pb.Check{}, always(checkFromWire), checkToWire)
		if check, ok := received.(*pb.Check); ok && check.State != string(dataplane.CheckOK) && check.State != string(dataplane.CheckMissing) {
			check.State = string(dataplane.CheckUnknown)
		}
		return received, sent
	}},
}

// outOfRange returns messages with one invalid value, by their error.
func outOfRange() map[string]proto.Message {
	key := func(change func(*pb.FrontendKey)) *pb.FrontendKey {
		k := &pb.FrontendKey{Vip: []byte{203, 0, 113, 1}, Protocol: 6, Port: 80}
		change(k)
		return k
	}
	frontend := func(change func(*pb.Frontend)) *pb.Frontend {
		f := &pb.Frontend{Key: key(func(*pb.FrontendKey) {}), Tenant: "a", Pool: "a/p", TargetPort: 30080}
		change(f)
		return f
	}
	endpoint := func(change func(*pb.Endpoint)) *pb.Pool {
		e := &pb.Endpoint{Id: "n1", Address: []byte{198, 51, 100, 11}, Weight: 1}
		change(e)
		return &pb.Pool{Id: "a/p", Tenant: "a", Endpoints: []*pb.Endpoint{e}}
	}
	mapped := netip.MustParseAddr("::ffff:203.0.113.1").AsSlice()
	const at, in = "frontend TCP 203.0.113.1:80: ", "pool a/p: endpoint n1: "
	return map[string]proto.Message{
		"port 65616 is more than 65535":                                  key(func(k *pb.FrontendKey) { k.Port = 65616 }),
		"protocol 262 is neither TCP (6) nor UDP (17)":                   key(func(k *pb.FrontendKey) { k.Protocol = 262 }),
		"vip: address of 0 bytes":                                        key(func(k *pb.FrontendKey) { k.Vip = nil }),
		"vip: address ::ffff:203.0.113.1: an IPv4 address":               key(func(k *pb.FrontendKey) { k.Vip = mapped }),
		at + "target_port 65616 is more than 65535":                      frontend(func(f *pb.Frontend) { f.TargetPort = 65616 }),
		at + "forwarding 256 is more than 2":                             frontend(func(f *pb.Frontend) { f.Forwarding = 256 }),
		at + "idle_timeout_milliseconds 18446744073709551 is more than":  frontend(func(f *pb.Frontend) { f.IdleTimeoutMilliseconds = 18446744073709551 }),
		at + "handover: asks 300 is more than 15":                        frontend(func(f *pb.Frontend) { f.Handover = &pb.Handover{Next: []byte{192, 0, 2, 1}, Asks: 300} }),
		at + "handover: address of 0 bytes":                              frontend(func(f *pb.Frontend) { f.Handover = &pb.Handover{} }),
		at + "source_ranges: 33 bits are more than an address of 32 has": frontend(func(f *pb.Frontend) { f.SourceRanges = []*pb.Prefix{{Address: []byte{10, 0, 0, 0}, Bits: 33}} }),
		at + "source_ranges: 4294967295 bits are more": frontend(func(f *pb.Frontend) {
			f.SourceRanges = []*pb.Prefix{{Address: []byte{10, 0, 0, 0}, Bits: math.MaxUint32}}
		}),
		in + "weight 65537 is more than 65535":                   endpoint(func(e *pb.Endpoint) { e.Weight = 65537 }),
		in + "state 256 is more than 2":                          endpoint(func(e *pb.Endpoint) { e.State = 256 }),
		in + "address: address of 5 bytes":                       endpoint(func(e *pb.Endpoint) { e.Address = []byte{1, 2, 3, 4, 5} }),
		"failed record: both pool a/p and a frontend":            &pb.RecordError{Pool: "a/p", Frontend: key(func(*pb.FrontendKey) {})},
		"failed record without a pool: frontend key: vip: addre": &pb.RecordError{Message: "no"},
	}
}

// A message that is received equals the one that was sent: nothing is truncated, so that no record is read as another one.
func FuzzWhatCrossesTheWire(f *testing.F) {
	kindOf := map[string]byte{}
	for i, kind := range wireKinds {
		kindOf[kind.name] = byte(i)
	}
	add := func(m proto.Message) {
		data, err := proto.Marshal(m)
		require.NoError(f, err)
		f.Add(kindOf[string(m.ProtoReflect().Descriptor().Name())], data)
	}
	for _, m := range outOfRange() {
		add(m)
	}
	s := bigSnapshot(2, 7, 12)
	s.Frontends[0].Redirect = model.Redirect{Next: netip.MustParseAddr("192.0.2.1"), Limit: 3}
	for _, p := range s.Pools {
		add(poolToWire(p))
	}
	for _, fe := range s.Frontends {
		add(frontendToWire(fe))
		add(keyToWire(fe.FrontendKey))
	}
	add(configToWire(dataplane.Config{StateDir: "/var/lib/kubelb/a", Options: map[string]string{"k": "v"}}))
	add(recordErrorToWire(dataplane.RecordError{Pool: "a/p", Message: "no"}))
	add(generationToWire(dataplane.Generation{Epoch: "e", Number: math.MaxUint64}))
	add(counterToWire(dataplane.Counter{Connections: math.MaxUint64, Open: 1}))
	add(checkToWire(dataplane.Check{Group: dataplane.GroupKernel, Subject: "module nft_ct", State: dataplane.CheckMissing}))
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		received, sent := wireKinds[int(kind)%len(wireKinds)].roundTrip(t, data)
		if received == nil {
			return
		}
		if !proto.Equal(received, sent) {
			t.Errorf("%v is sent on as %v", received, sent)
		}
		_, err := proto.Marshal(sent)
		require.NoError(t, err)
	})
}

func TestAValueOutOfRangeIsAnErrorThatNamesRecordAndField(t *testing.T) {
	for want, m := range outOfRange() {
		var err error
		switch m := m.(type) {
		case *pb.FrontendKey:
			_, err = keyFromWire(m)
		case *pb.Frontend:
			_, err = frontendFromWire(m)
		case *pb.Pool:
			_, err = poolFromWire(m)
		case *pb.RecordError:
			_, err = recordErrorFromWire(m)
		}
		require.ErrorContains(t, err, want)
	}
}

// The plugin may be of another version than the manager, or faulty.
func TestAMalformedRecordFailsAlone(t *testing.T) {
	fake := &dataplane.Fake{}
	_, connection := overTheWire(t, fake)
	stream, err := pb.NewDataplaneClient(connection).Apply(t.Context())
	require.NoError(t, err)
	s := bigSnapshot(1, 1, 2)
	pool, bad := poolToWire(s.Pools[0]), &pb.Pool{Id: "a/bad", Tenant: "a", Endpoints: []*pb.Endpoint{{Id: "n", Address: []byte{1}, Weight: 1}}}
	good, tall := frontendToWire(s.Frontends[0]), frontendToWire(s.Frontends[1])
	tall.Forwarding = 3
	require.NoError(t, stream.Send(&pb.ApplyChunk{Next: &pb.Generation{Epoch: "e", Number: 1}, End: true,
		UpsertPools: []*pb.Pool{bad, pool}, UpsertFrontends: []*pb.Frontend{tall, good}}))
	response, err := stream.CloseAndRecv()
	require.NoError(t, err)
	require.Len(t, response.Failed, 2)
	require.Equal(t, "a/bad", response.Failed[0].Pool)
	require.Contains(t, response.Failed[0].Message, "address of 1 bytes")
	require.True(t, proto.Equal(tall.Key, response.Failed[1].Frontend))
	require.Contains(t, response.Failed[1].Message, "forwarding 3 is more than 2")
	require.Equal(t, s.Pools[0].Text()+s.Frontends[0].Text(), fake.Dump())
}

// invalidText answers with texts that are not UTF-8.
type invalidText struct{ dataplane.Fake }

// Watch reports a fault with such a text.
func (i *invalidText) Watch(_ context.Context, report func(dataplane.Fault)) error {
	report(dataplane.Fault{Time: time.Unix(5, 0), Message: "eth\xff0 is down"})
	return nil
}

func TestTextsThatAreNotUTF8AreShown(t *testing.T) {
	long := strings.Repeat("x", 1<<20-1-len("pool ")) + "ö" + strings.Repeat("y", 1<<20)
	d, _ := overTheWire(t, &invalidText{dataplane.Fake{Refuse: func(string) string { return "eth\xff0 is down" }, Checks: []dataplane.Check{{Subject: "\xff"}}}})
	var faults []dataplane.Fault
	_ = d.Watch(t.Context(), func(f dataplane.Fault) { faults = append(faults, f) })
	require.Len(t, faults, 1)
	require.Equal(t, "eth\uFFFD0 is down", faults[0].Message)
	result, err := d.Apply(t.Context(), dataplane.Change{Delta: model.Delta{UpsertPools: []model.Pool{{ID: "a/p", Tenant: "a"}}}})
	require.NoError(t, err)
	require.Equal(t, "eth\uFFFD0 is down", result.Failed[0].Message)
	checks, err := d.Preflight(t.Context(), dataplane.Config{})
	require.NoError(t, err)
	require.Equal(t, []dataplane.Check{{Subject: "\uFFFD", State: dataplane.CheckUnknown}}, checks)
	text, err := d.Render(t.Context(), model.Snapshot{Pools: []model.Pool{{ID: model.PoolID(long), Tenant: "a"}}})
	require.NoError(t, err)
	require.Contains(t, text, "xöy")
}
