package envoy

import (
	"context"
	"strconv"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
)

// envoyTrial is an xds without a server: the test makes the calls of Envoy's streams.
type envoyTrial struct {
	*testing.T
	*xds
	nonces int
}

func newEnvoyTrial(t *testing.T) *envoyTrial { return &envoyTrial{T: t, xds: newXDS()} }

// newConnectedTrial has stream 1 of launch 1.
func newConnectedTrial(t *testing.T) *envoyTrial {
	e := newEnvoyTrial(t)
	_, err := e.connect(1, 1)
	require.NoError(t, err)
	return e
}

// connect opens a stream of a launch. ended tells whether the stream was ended by the plugin.
func (e *envoyTrial) connect(stream int64, launch int) (ended func() bool, err error) {
	ctx, cancel := context.WithCancel(e.Context())
	e.Cleanup(cancel)
	ctx = metadata.NewIncomingContext(context.WithValue(ctx, cancelKey{}, cancel), metadata.Pairs(launchHeader, strconv.Itoa(launch)))
	return func() bool { return ctx.Err() != nil }, callbacks{e.xds}.OnDeltaStreamOpen(ctx, stream, "")
}

// answer sends resources on the stream and answers for Envoy, with its complaint if it has one.
func (e *envoyTrial) answer(stream int64, complaint string, all ...named) {
	e.Helper()
	e.nonces++
	nonce := strconv.Itoa(e.nonces)
	sent := &discovery.DeltaDiscoveryResponse{TypeUrl: all[0].kind, Nonce: nonce}
	for _, n := range all {
		if n.version == "" {
			sent.RemovedResources = append(sent.RemovedResources, n.name)
			continue
		}
		sent.Resources = append(sent.Resources, &discovery.Resource{Name: n.name, Version: n.version})
	}
	callbacks{e.xds}.OnStreamDeltaResponse(stream, nil, sent)
	request := &discovery.DeltaDiscoveryRequest{TypeUrl: all[0].kind, ResponseNonce: nonce}
	if complaint != "" {
		require.NoError(e, protojson.Unmarshal([]byte(`{"errorDetail":{"message":`+strconv.Quote(complaint)+`}}`), request))
		request.TypeUrl, request.ResponseNonce = all[0].kind, nonce
	}
	require.NoError(e, callbacks{e.xds}.OnStreamDeltaRequest(stream, request))
}

// now returns what await returns if nothing more happens.
func (e *envoyTrial) now(want ...named) (map[string]string, error) {
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	return e.await(ctx, want)
}

func assignments(names ...string) map[string]types.Resource {
	out := map[string]types.Resource{}
	for _, name := range names {
		out[name] = &endpoint.ClusterLoadAssignment{ClusterName: name}
	}
	return out
}

func TestAChangeIsDoneWhenEnvoyHasAnsweredForEachResource(t *testing.T) {
	e := newEnvoyTrial(t)
	want, err := e.update(resource.EndpointType, assignments("a", "b"), nil)
	require.NoError(t, err)
	_, err = e.now(want...)
	require.ErrorIs(t, err, errNotConnected)
	_, err = e.connect(1, 1)
	require.NoError(t, err)
	_, err = e.now(want...)
	require.EqualError(t, err, "Envoy has not answered for 2 of 2 resources")
	e.answer(1, "", want[0])
	_, err = e.now(want...)
	require.EqualError(t, err, "Envoy has not answered for 1 of 2 resources")
	e.answer(1, "", named{want[1].kind, want[1].name, "a former version"})
	_, err = e.now(want...)
	require.EqualError(t, err, "Envoy has not answered for 1 of 2 resources")
	e.answer(1, "", want[1])
	refused, err := e.now(want...)
	require.NoError(t, err)
	require.Empty(t, refused)

	again, err := e.update(resource.EndpointType, assignments("a"), nil)
	require.NoError(t, err)
	require.Equal(t, want[:1], again)
	_, err = e.now(again...)
	require.NoError(t, err, "Envoy has this version already")
}

func TestEnvoyRefusesOneResourceOfAResponseAndTakesTheOthers(t *testing.T) {
	e := newConnectedTrial(t)
	bad, good := named{resource.ListenerType, "TCP 203.0.113.1:80", "v1"}, named{resource.ListenerType, "TCP 203.0.113.2:80", "v2"}
	e.answer(1, "Error adding listener TCP 203.0.113.1:80: cannot bind", bad, good)
	refused, err := e.now(bad, good)
	require.NoError(t, err)
	require.Equal(t, map[string]string{bad.name: "Error adding listener TCP 203.0.113.1:80: cannot bind"}, refused)
	bad.version = "v3"
	e.answer(1, "", bad)
	refused, err = e.now(bad)
	require.NoError(t, err)
	require.Empty(t, refused, "its next version is good")
}

func TestADeletedResourceIsGoneWhenEnvoyHasAnswered(t *testing.T) {
	e := newConnectedTrial(t)
	have, gone := named{resource.ClusterType, "a", "v1"}, named{resource.ClusterType, "a", ""}
	_, err := e.now(gone)
	require.NoError(t, err, "Envoy never had it")
	e.answer(1, "", have)
	_, err = e.now(gone)
	require.ErrorContains(t, err, "has not answered for 1 of 1")
	e.answer(1, "", gone)
	_, err = e.now(gone)
	require.NoError(t, err)
}

func TestAnEnvoyThatConnectsAgainKeepsItsResources(t *testing.T) {
	e := newConnectedTrial(t)
	want := named{resource.EndpointType, "a", "v1"}
	callbacks{e.xds}.OnDeltaStreamClosed(1, nil)
	_, err := e.now(want)
	require.ErrorIs(t, err, errNotConnected)
	_, err = e.connect(2, 1)
	require.NoError(t, err)
	require.NoError(t, callbacks{e.xds}.OnStreamDeltaRequest(2, &discovery.DeltaDiscoveryRequest{TypeUrl: want.kind, InitialResourceVersions: map[string]string{"a": "v1"}}))
	_, err = e.now(want)
	require.NoError(t, err)
}

func TestDuringAHotRestartOnlyTheNextEnvoyGetsChanges(t *testing.T) {
	e := newEnvoyTrial(t)
	formerEnded, err := e.connect(1, 1)
	require.NoError(t, err)
	listener := named{resource.ListenerType, "TCP 203.0.113.1:80", "v1"}
	e.answer(1, "", listener)
	nextEnded, err := e.connect(2, 2)
	require.NoError(t, err)
	require.NoError(t, callbacks{e.xds}.OnStreamDeltaRequest(2, &discovery.DeltaDiscoveryRequest{TypeUrl: resource.ListenerType}))
	require.False(t, formerEnded(), "the next one has no listeners yet")
	e.answer(2, "", listener)
	require.True(t, formerEnded())
	require.False(t, nextEnded())
	_, err = e.connect(3, 1)
	require.EqualError(t, err, "the Envoy of launch 1 has been replaced by that of launch 2")
	listener.version = "v2"
	e.answer(1, "", listener)
	_, err = e.now(listener)
	require.ErrorContains(t, err, "has not answered", "an answer of the former one does not count")
	e.answer(2, "", listener)
	_, err = e.now(listener)
	require.NoError(t, err)
}

func TestOnlyDeltaStreamsAreServed(t *testing.T) {
	c := callbacks{newXDS()}
	for _, err := range []error{c.OnStreamOpen(t.Context(), 1, ""), c.OnStreamRequest(1, nil), c.OnFetchRequest(t.Context(), nil)} {
		require.EqualError(t, err, "only delta streams are served")
	}
}
