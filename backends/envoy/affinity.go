package envoy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimit "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"kubelb.k8c.io/core/model"
)

// maxClients is the capacity of the table of clients of each family.
const maxClients = 131072

// affinity chooses the endpoint of each client of a frontend with session affinity. Envoy asks for it before it connects, once for each TCP
// connection and each UDP session. Without an answer Envoy hashes the client's address. The endpoint of a client that is not stored is chosen by
// the same hash here.
type affinity struct {
	mu        sync.Mutex
	frontends map[model.FrontendKey]*affinityFrontend
	v4, v6    *clientTable
}

// affinityFrontend is a frontend with affinity and the endpoints of its new flows. It is immutable.
type affinityFrontend struct {
	id      frontendID
	timeout time.Duration
	port    uint16
	// endpoints get new flows. serving holds their addresses.
	endpoints []model.Endpoint
	serving   map[netip.Addr]bool
	// table is computed at its first use.
	table func() maglev
}

func newAffinityFrontend(f model.Frontend, p model.Pool, include func(netip.Addr) bool) *affinityFrontend {
	a := &affinityFrontend{id: idOf(f), timeout: f.AffinityTimeout, port: f.TargetPort, serving: map[netip.Addr]bool{}}
	serving, rows := servingState(p), rowsFor(p)
	for _, e := range p.Endpoints {
		if e.State == serving && include(e.Address) {
			a.endpoints, a.serving[e.Address] = append(a.endpoints, e), true
		}
	}
	a.table = sync.OnceValue(func() maglev { return newMaglev(a.endpoints, rows) })
	return a
}

// idOf hashes the tenant into the first bits, and the frontend's key with the tenant into the others. If another tenant gets the address and port,
// the ID changes.
func idOf(f model.Frontend) frontendID {
	tenant, frontend := sha256.Sum256([]byte(f.Tenant)), sha256.Sum256([]byte(f.FrontendKey.String()+" "+f.Tenant))
	first, last := frontendID(binary.BigEndian.Uint64(tenant[:])), frontendID(binary.BigEndian.Uint64(frontend[:]))
	return max(first>>frontendBits<<frontendBits|last&(1<<frontendBits-1), 1)
}

// openAffinity reads the clients that an earlier process stored. It drops clients of other frontends than these.
func openAffinity(dir string, frontends map[model.FrontendKey]model.Frontend) *affinity {
	known := map[frontendID]bool{}
	for _, f := range frontends {
		known[idOf(f)] = f.AffinityTimeout > 0
	}
	open := func(family string) *clientTable {
		return openClientTable(filepath.Join(dir, "clients-"+family), maxClients, func(id frontendID) bool { return known[id] })
	}
	return &affinity{frontends: map[model.FrontendKey]*affinityFrontend{}, v4: open("ipv4"), v6: open("ipv6")}
}

// setEndpoints uses all serving endpoints of the pool for clients of the frontend. It is called after Envoy has accepted them.
func (a *affinity) setEndpoints(f model.Frontend, p model.Pool) {
	a.replace(f, p, func(*affinityFrontend, netip.Addr) bool { return true })
}

// restrictEndpoints uses only endpoints that are in both the former pool and this one. Until Envoy has accepted the pool, it may have either.
func (a *affinity) restrictEndpoints(f model.Frontend, p model.Pool) {
	id := idOf(f)
	a.replace(f, p, func(before *affinityFrontend, endpoint netip.Addr) bool {
		return before != nil && before.id == id && before.port == f.TargetPort && before.serving[endpoint]
	})
}

// replace replaces the frontend's endpoints by those of the pool that include selects, and removes a frontend without affinity.
func (a *affinity) replace(f model.Frontend, p model.Pool, include func(before *affinityFrontend, endpoint netip.Addr) bool) {
	a.mu.Lock()
	before := a.frontends[f.FrontendKey]
	a.mu.Unlock()
	var next *affinityFrontend
	if f.AffinityTimeout > 0 {
		next = newAffinityFrontend(f, p, func(endpoint netip.Addr) bool { return include(before, endpoint) })
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if next != nil {
		a.frontends[f.FrontendKey] = next
	} else {
		delete(a.frontends, f.FrontendKey)
	}
}

// deleteClients deletes the clients of each frontend that was deleted, lost its affinity, or got another tenant.
func (a *affinity) deleteClients(before, after map[model.FrontendKey]model.Frontend) {
	removed := map[frontendID]bool{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, old := range before {
		next, exists := after[key]
		if old.AffinityTimeout == 0 || exists && next.AffinityTimeout > 0 && next.Tenant == old.Tenant {
			continue
		}
		removed[idOf(old)] = true
		delete(a.frontends, key)
	}
	if len(removed) > 0 {
		a.v4.deleteFrontends(removed)
		a.v6.deleteFrontends(removed)
	}
}

// endpointFor returns the endpoint of a client and stores it. found is false if the frontend has no affinity or no endpoints.
func (a *affinity) endpointFor(key model.FrontendKey, client netip.Addr, now time.Time) (at netip.AddrPort, found bool) {
	var hashed netip.Addr
	var hashedBy *affinityFrontend
	for {
		a.mu.Lock()
		f := a.frontends[key]
		if f == nil || len(f.endpoints) == 0 {
			a.mu.Unlock()
			return at, false
		}
		endpoint, known := a.storedEndpoint(f, client, now)
		// The lock is not held while the table is computed. So another connection may have stored the client, or the endpoints may have changed.
		if !known && hashedBy == f {
			endpoint, known = hashed, true
		}
		if known {
			a.tableFor(client).put(clientKey{f.id, client.As16()}, endpoint.As16(), now)
			a.mu.Unlock()
			return netip.AddrPortFrom(endpoint, f.port), true
		}
		a.mu.Unlock()
		hashed, hashedBy = f.table().find(client), f
	}
}

// storedEndpoint returns the client's stored endpoint if the timeout has not passed and the endpoint still gets new flows. The caller holds the lock.
func (a *affinity) storedEndpoint(f *affinityFrontend, client netip.Addr, now time.Time) (netip.Addr, bool) {
	found, known := a.tableFor(client).find(clientKey{f.id, client.As16()}, now.Add(-f.timeout))
	endpoint := netip.AddrFrom16(found).Unmap()
	return endpoint, known && f.serving[endpoint]
}

// tableFor returns the table of the client's family.
func (a *affinity) tableFor(client netip.Addr) *clientTable {
	if client.Is4() {
		return a.v4
	}
	return a.v6
}

// note tells the operator why clients are not written to disk. It is empty if they are.
func (a *affinity) note() string {
	if err := errors.Join(a.v4.problem(), a.v6.problem()); err != nil {
		return fmt.Sprintf("some clients with session affinity are not written to disk: %v; after a restart of this plugin they are treated as new", err)
	}
	return ""
}

func (a *affinity) close() error {
	return errors.Join(a.v4.close(), a.v6.close())
}

// Keys of the request about a TCP connection (descriptor), and of the answer for both protocols (metadata).
const (
	descriptorFrontend = "frontend"
	descriptorClient   = "client"
	metadataEndpoint   = "endpoint"
)

// metadataFor returns the dynamic metadata with the endpoint for Envoy's load balancer, nil if Envoy chooses.
func (a *affinity) metadataFor(protocol model.Protocol, frontend netip.AddrPort, client netip.Addr) *structpb.Struct {
	key := model.FrontendKey{VIP: frontend.Addr().Unmap(), Protocol: protocol, Port: frontend.Port()}
	at, found := a.endpointFor(key, client.Unmap(), time.Now())
	if !found {
		return nil
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{metadataEndpoint: structpb.NewStringValue(at.String())}}
}

// register adds the services that Envoy's filters call: rate limiting for TCP, external authorization for UDP. Both always allow the flow.
func (a *affinity) register(s *grpc.Server) {
	ratelimit.RegisterRateLimitServiceServer(s, rateLimitService{affinity: a})
	auth.RegisterAuthorizationServer(s, authorizationService{affinity: a})
}

// rateLimitService answers about TCP connections.
type rateLimitService struct {
	ratelimit.UnimplementedRateLimitServiceServer
	*affinity
}

// ShouldRateLimit implements ratelimit.RateLimitServiceServer.
func (s rateLimitService) ShouldRateLimit(_ context.Context, r *ratelimit.RateLimitRequest) (*ratelimit.RateLimitResponse, error) {
	out := &ratelimit.RateLimitResponse{OverallCode: ratelimit.RateLimitResponse_OK}
	for _, d := range r.GetDescriptors() {
		values := map[string]string{}
		for _, e := range d.GetEntries() {
			values[e.GetKey()] = e.GetValue()
		}
		frontend, frontendErr := netip.ParseAddrPort(values[descriptorFrontend])
		client, clientErr := netip.ParseAddr(values[descriptorClient])
		if frontendErr == nil && clientErr == nil {
			out.DynamicMetadata = s.metadataFor(model.TCP, frontend, client)
		}
	}
	return out, nil
}

// authorizationService answers about UDP sessions.
type authorizationService struct {
	auth.UnimplementedAuthorizationServer
	*affinity
}

// Check implements auth.AuthorizationServer.
func (s authorizationService) Check(_ context.Context, r *auth.CheckRequest) (*auth.CheckResponse, error) {
	out := &auth.CheckResponse{Status: &status.Status{}}
	frontend, frontendErr := peerAddress(r.GetAttributes().GetDestination())
	client, clientErr := peerAddress(r.GetAttributes().GetSource())
	if frontendErr == nil && clientErr == nil {
		out.DynamicMetadata = s.metadataFor(model.UDP, frontend, client.Addr())
	}
	return out, nil
}

func peerAddress(p *auth.AttributeContext_Peer) (netip.AddrPort, error) {
	at := p.GetAddress().GetSocketAddress()
	address, err := netip.ParseAddr(at.GetAddress())
	return netip.AddrPortFrom(address, uint16(at.GetPortValue())), err
}
