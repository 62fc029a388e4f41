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

// mostClients is how many clients of each family are remembered.
const mostClients = 131072

// affinity tells Envoy which endpoint a client has that comes to a frontend with affinity. Envoy asks before it connects, for each TCP
// connection and each UDP session. Where it gets no answer it hashes the client's address, by which clients that are not remembered
// get their endpoint here as well.
type affinity struct {
	mu      sync.Mutex
	choices map[model.FrontendKey]*choice
	v4, v6  *clients
}

// choice is what a client of a frontend may get. It never changes.
type choice struct {
	identity identity
	timeout  time.Duration
	port     uint16
	// endpoints are those that get new flows, serving the same by address.
	endpoints []model.Endpoint
	serving   map[netip.Addr]bool
	// table is made when it is needed first.
	table func() maglev
}

func newChoice(f model.Frontend, p model.Pool, may func(netip.Addr) bool) *choice {
	c := &choice{identity: identityOf(f), timeout: f.AffinityTimeout, port: f.TargetPort, serving: map[netip.Addr]bool{}}
	serving, rows := servingState(p), rowsFor(p)
	for _, e := range p.Endpoints {
		if e.State == serving && may(e.Address) {
			c.endpoints, c.serving[e.Address] = append(c.endpoints, e), true
		}
	}
	c.table = sync.OnceValue(func() maglev { return newMaglev(c.endpoints, c.port, rows) })
	return c
}

// identityOf is the frontend as its clients know it: another tenant's is another one.
func identityOf(f model.Frontend) identity {
	sum := sha256.Sum256([]byte(f.FrontendKey.String() + " " + f.Tenant))
	return max(identity(binary.BigEndian.Uint64(sum[:])), 1)
}

// openAffinity remembers the clients of an earlier process, of the frontends that there are.
func openAffinity(dir string, frontends map[model.FrontendKey]model.Frontend) *affinity {
	known := map[identity]bool{}
	for _, f := range frontends {
		known[identityOf(f)] = f.AffinityTimeout > 0
	}
	open := func(family string) *clients {
		return openClients(filepath.Join(dir, "clients-"+family), mostClients, func(i identity) bool { return known[i] })
	}
	return &affinity{choices: map[model.FrontendKey]*choice{}, v4: open("ipv4"), v6: open("ipv6")}
}

// set has clients of the frontend get the endpoints that Envoy has for it now.
func (a *affinity) set(f model.Frontend, p model.Pool) {
	a.change(f, p, func(*choice, netip.Addr) bool { return true })
}

// narrow leaves the endpoints that Envoy has for the frontend whether it has heard of the pool already or not.
func (a *affinity) narrow(f model.Frontend, p model.Pool) {
	is := identityOf(f)
	a.change(f, p, func(before *choice, endpoint netip.Addr) bool {
		return before != nil && before.identity == is && before.port == f.TargetPort && before.serving[endpoint]
	})
}

// change replaces what the clients of the frontend may get by the pool's endpoints that may be used after what was before.
func (a *affinity) change(f model.Frontend, p model.Pool, may func(before *choice, endpoint netip.Addr) bool) {
	a.mu.Lock()
	before := a.choices[f.FrontendKey]
	a.mu.Unlock()
	var next *choice
	if f.AffinityTimeout > 0 {
		next = newChoice(f, p, func(endpoint netip.Addr) bool { return may(before, endpoint) })
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if next != nil {
		a.choices[f.FrontendKey] = next
	} else {
		delete(a.choices, f.FrontendKey)
	}
}

// forget forgets the clients of frontends that are no more, have no affinity any longer, or are another tenant's.
func (a *affinity) forget(was, now map[model.FrontendKey]model.Frontend) {
	gone := map[identity]bool{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, before := range was {
		after, there := now[key]
		if before.AffinityTimeout == 0 || there && after.AffinityTimeout > 0 && after.Tenant == before.Tenant {
			continue
		}
		gone[identityOf(before)] = true
		delete(a.choices, key)
	}
	if len(gone) > 0 {
		a.v4.forget(gone)
		a.v6.forget(gone)
	}
}

// endpointFor returns the endpoint of a client that comes to the frontend at that time, if the frontend has affinity and endpoints.
func (a *affinity) endpointFor(key model.FrontendKey, from netip.Addr, now time.Time) (at netip.AddrPort, found bool) {
	var proposed netip.Addr
	var by *choice
	for {
		a.mu.Lock()
		c := a.choices[key]
		if c == nil || len(c.endpoints) == 0 {
			a.mu.Unlock()
			return at, false
		}
		endpoint, known := a.remembered(c, from, now)
		// Another connection of the client may have come first, and the endpoints may be others, while the table was made.
		if !known && by == c {
			endpoint, known = proposed, true
		}
		if known {
			a.of(from).remember(client{c.identity, from.As16()}, endpoint.As16(), now)
			a.mu.Unlock()
			return netip.AddrPortFrom(endpoint, c.port), true
		}
		a.mu.Unlock()
		proposed, by = c.table().find(from), c
	}
}

// remembered returns the client's endpoint if it is within the timeout and still gets new flows. The caller holds the lock.
func (a *affinity) remembered(c *choice, from netip.Addr, now time.Time) (netip.Addr, bool) {
	found, known := a.of(from).find(client{c.identity, from.As16()}, now.Add(-c.timeout))
	endpoint := netip.AddrFrom16(found).Unmap()
	return endpoint, known && c.serving[endpoint]
}

func (a *affinity) of(from netip.Addr) *clients {
	if from.Is4() {
		return a.v4
	}
	return a.v6
}

// note is for the operator: why clients are not kept. It is empty if they are.
func (a *affinity) note() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := errors.Join(a.v4.unkept, a.v6.unkept); err != nil {
		return fmt.Sprintf("clients with affinity are not all kept: %v; after a restart of this plugin some are treated as new", err)
	}
	return ""
}

func (a *affinity) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.v4.close(), a.v6.close())
}

// What Envoy asks with about a TCP connection, and where it finds the answer.
const (
	entryFrontend = "frontend"
	entryClient   = "client"
	fieldEndpoint = "endpoint"
)

// answer is for Envoy's load balancer, nil if it is to decide alone.
func (a *affinity) answer(protocol model.Protocol, frontend netip.AddrPort, from netip.Addr) *structpb.Struct {
	key := model.FrontendKey{VIP: frontend.Addr().Unmap(), Protocol: protocol, Port: frontend.Port()}
	at, found := a.endpointFor(key, from.Unmap(), time.Now())
	if !found {
		return nil
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{fieldEndpoint: structpb.NewStringValue(at.String())}}
}

// serve answers at the server. Envoy has two kinds of filters that ask before there is an endpoint, one for each protocol: neither limits or refuses
// anything here.
func (a *affinity) serve(s *grpc.Server) {
	ratelimit.RegisterRateLimitServiceServer(s, tcpClients{affinity: a})
	auth.RegisterAuthorizationServer(s, udpClients{affinity: a})
}

// tcpClients answers about connections.
type tcpClients struct {
	ratelimit.UnimplementedRateLimitServiceServer
	*affinity
}

// ShouldRateLimit implements ratelimit.RateLimitServiceServer.
func (t tcpClients) ShouldRateLimit(_ context.Context, r *ratelimit.RateLimitRequest) (*ratelimit.RateLimitResponse, error) {
	out := &ratelimit.RateLimitResponse{OverallCode: ratelimit.RateLimitResponse_OK}
	for _, d := range r.GetDescriptors() {
		said := map[string]string{}
		for _, e := range d.GetEntries() {
			said[e.GetKey()] = e.GetValue()
		}
		frontend, unclear := netip.ParseAddrPort(said[entryFrontend])
		from, unknown := netip.ParseAddr(said[entryClient])
		if unclear == nil && unknown == nil {
			out.DynamicMetadata = t.answer(model.TCP, frontend, from)
		}
	}
	return out, nil
}

// udpClients answers about sessions.
type udpClients struct {
	auth.UnimplementedAuthorizationServer
	*affinity
}

// Check implements auth.AuthorizationServer.
func (u udpClients) Check(_ context.Context, r *auth.CheckRequest) (*auth.CheckResponse, error) {
	out := &auth.CheckResponse{Status: &status.Status{}}
	frontend, unclear := addressOf(r.GetAttributes().GetDestination())
	from, unknown := addressOf(r.GetAttributes().GetSource())
	if unclear == nil && unknown == nil {
		out.DynamicMetadata = u.answer(model.UDP, frontend, from.Addr())
	}
	return out, nil
}

func addressOf(p *auth.AttributeContext_Peer) (netip.AddrPort, error) {
	at := p.GetAddress().GetSocketAddress()
	address, err := netip.ParseAddr(at.GetAddress())
	return netip.AddrPortFrom(address, uint16(at.GetPortValue())), err
}
