package envoy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
)

// xds serves resources to one Envoy over a Unix socket, and knows which of them Envoy has accepted.
type xds struct {
	caches map[string]*cache.LinearCache
	// served are the versions in the caches, by type and name.
	served map[string]map[string]string
	server *grpc.Server
	done   chan struct{}

	mu sync.Mutex
	// changed is closed and replaced whenever one of the fields below changes.
	changed chan struct{}
	streams map[int64]stream
	sent    map[response][]named
	// outcomes has the outcome of resources at each launch of Envoy, by type and name.
	outcomes map[int]map[string]map[string]outcome
	// leadingLaunch is the last launch that has accepted listeners. During a hot restart, former Envoys keep their connections and
	// resources, and get no changes: a new listener of a former Envoy would get connections that end with it.
	leadingLaunch int
}

// stream is a stream that an Envoy has opened.
type stream struct {
	launch     int
	superseded context.CancelFunc
}

// response identifies a response that Envoy will accept or refuse.
type response struct {
	stream int64
	nonce  string
}

// named is a version of a resource. The version of a deleted resource is empty.
type named struct{ kind, name, version string }

// outcome is the version of a resource that Envoy has accepted or refused.
type outcome struct {
	version string
	refused string // Envoy's reason, empty if accepted
}

// kinds are the types of resources in the order in which caches are changed, so that resources exist before Envoy requests them
// because of others.
var kinds = []string{resource.EndpointType, resource.ClusterType, resource.ListenerType}

func newXDS() *xds {
	x := &xds{caches: map[string]*cache.LinearCache{}, served: map[string]map[string]string{}, done: make(chan struct{}), changed: make(chan struct{}), streams: map[int64]stream{}, sent: map[response][]named{}, outcomes: map[int]map[string]map[string]outcome{}}
	for _, kind := range kinds {
		x.caches[kind] = cache.NewLinearCache(kind)
		x.served[kind] = map[string]string{}
	}
	return x
}

// serve listens at the path. register adds further services to the server. Nothing is served before serve is called: a plugin without a state would
// remove all resources of a running Envoy.
func (x *xds) serve(path string, register func(*grpc.Server)) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("serve Envoy: %w", err)
	}
	mux := &cache.MuxCache{ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() }, Caches: map[string]cache.Cache{}}
	for kind, c := range x.caches {
		mux.Caches[kind] = c
	}
	x.server = grpc.NewServer(grpc.MaxConcurrentStreams(maxAffinityRequests), grpc.StreamInterceptor(endWhenCancelled))
	discovery.RegisterAggregatedDiscoveryServiceServer(x.server, server.NewServer(context.Background(), mux, callbacks{x}))
	register(x.server)
	go func() {
		defer close(x.done)
		_ = x.server.Serve(listener) // it ends when close stops the server
	}()
	return nil
}

func (x *xds) close() {
	if x.server != nil {
		x.server.Stop()
		<-x.done
	}
}

// update changes resources of a kind, and returns the versions that Envoy has to accept.
func (x *xds) update(kind string, changed map[string]types.Resource, gone []string) ([]named, error) {
	var want []named
	differing := map[string]types.Resource{}
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		bytes, err := cache.MarshalResource(changed[name])
		if err != nil {
			return nil, err
		}
		version := cache.HashResource(bytes)
		want = append(want, named{kind, name, version})
		if x.served[kind][name] != version {
			x.served[kind][name], differing[name] = version, changed[name]
		}
	}
	for _, name := range gone {
		want = append(want, named{kind, name, ""})
		delete(x.served[kind], name)
	}
	if len(differing)+len(gone) == 0 {
		return want, nil
	}
	return want, x.caches[kind].UpdateResources(differing, gone)
}

// errNotConnected says that no Envoy requests resources.
var errNotConnected = errors.New("Envoy is not connected")

// await returns when Envoy has accepted or refused all resources. It returns the reasons of refused ones by name.
func (x *xds) await(ctx context.Context, want []named) (map[string]string, error) {
	refused := map[string]string{}
	for {
		x.mu.Lock()
		changed, missing := x.changed, 0
		for _, w := range want {
			got, known := x.outcomes[x.current()][w.kind][w.name]
			switch {
			case w.version == "" && !known, known && got.version == w.version && got.refused == "":
			case known && got.version == w.version:
				refused[w.name] = got.refused
			default:
				missing++
			}
		}
		connected := len(x.streams) > 0
		x.mu.Unlock()
		if missing == 0 {
			return refused, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if !connected {
				return refused, errNotConnected
			}
			return refused, fmt.Errorf("Envoy has not answered for %d of %d resources", missing, len(want))
		}
	}
}

// locked calls f with the lock held, and wakes up await.
func (x *xds) locked(f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f()
	close(x.changed)
	x.changed = make(chan struct{})
}

// callbacks are called by the server for each stream.
type callbacks struct{ *xds }

var _ server.Callbacks = callbacks{}

func (c callbacks) OnDeltaStreamOpen(ctx context.Context, id int64, _ string) (err error) {
	launch := launchNumber(ctx)
	c.locked(func() {
		if launch < c.leadingLaunch {
			err = fmt.Errorf("the Envoy of launch %d has been replaced by that of launch %d", launch, c.leadingLaunch)
			return
		}
		c.streams[id] = stream{launch, cancelOf(ctx)}
		if c.outcomes[launch] == nil {
			c.outcomes[launch] = map[string]map[string]outcome{}
			for _, kind := range kinds {
				c.outcomes[launch][kind] = map[string]outcome{}
			}
		}
	})
	return err
}

func (c callbacks) OnDeltaStreamClosed(id int64, _ *core.Node) {
	c.locked(func() {
		delete(c.streams, id)
		maps.DeleteFunc(c.sent, func(r response, _ []named) bool { return r.stream == id })
	})
}

func (c callbacks) OnStreamDeltaResponse(id int64, _ *discovery.DeltaDiscoveryRequest, r *discovery.DeltaDiscoveryResponse) {
	var names []named
	for _, res := range r.Resources {
		names = append(names, named{r.TypeUrl, res.Name, res.Version})
	}
	for _, name := range r.RemovedResources {
		names = append(names, named{r.TypeUrl, name, ""})
	}
	c.locked(func() { c.sent[response{id, r.Nonce}] = names })
}

func (c callbacks) OnStreamDeltaRequest(id int64, r *discovery.DeltaDiscoveryRequest) error {
	c.locked(func() {
		launch := c.streams[id].launch
		taken := c.outcomes[launch][r.TypeUrl]
		if taken == nil {
			return
		}
		// Resources that Envoy has when it connects again are not sent again.
		for name, version := range r.InitialResourceVersions {
			taken[name] = outcome{version: version}
		}
		answered := response{id, r.ResponseNonce}
		for _, n := range c.sent[answered] {
			o := outcome{version: n.version}
			if r.ErrorDetail != nil {
				o.refused = reasonFor(n.name, r.ErrorDetail.Message)
			}
			if n.version == "" && o.refused == "" {
				delete(taken, n.name)
				continue
			}
			taken[n.name] = o
		}
		delete(c.sent, answered)
		if r.TypeUrl == resource.ListenerType && r.ResponseNonce != "" && launch > c.leadingLaunch {
			c.setLeading(launch)
		}
	})
	return nil
}

// reasonFor returns the part of a message about a response that is about one resource. Envoy accepts the good resources of a
// response and names the others. An empty reason means that Envoy has accepted the resource.
func reasonFor(name, message string) string {
	for line := range strings.SplitSeq(message, "\n") {
		if strings.Contains(line, name+":") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// answerTimeout is the deadline for Envoy to connect and to accept a change if the caller has no deadline. Thousands of listeners take long if there are
// few processors, or busy ones.
const answerTimeout = 40 * time.Second

// withAnswerTimeout sets a deadline for Envoy at four fifths of the caller's, so that the caller gets an error that says what is slow.
func withAnswerTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	left := answerTimeout
	if end, set := ctx.Deadline(); set {
		left = time.Until(end) / 5 * 4
	}
	return context.WithTimeout(ctx, left)
}

// The other methods of the interface are for kinds of streams that Envoy does not open.
func (callbacks) OnStreamOpen(context.Context, int64, string) error {
	return errors.New("only delta streams are served")
}
func (callbacks) OnStreamClosed(int64, *core.Node) {}
func (callbacks) OnStreamRequest(int64, *discovery.DiscoveryRequest) error {
	return errors.New("only delta streams are served")
}
func (callbacks) OnStreamResponse(context.Context, int64, *discovery.DiscoveryRequest, *discovery.DiscoveryResponse) {
}
func (callbacks) OnFetchRequest(context.Context, *discovery.DiscoveryRequest) error {
	return errors.New("only delta streams are served")
}
func (callbacks) OnFetchResponse(*discovery.DiscoveryRequest, *discovery.DiscoveryResponse) {}
