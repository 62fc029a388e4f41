// Package oracle says what a dataplane may do with a flow: a model of the path of packets without packets, for what any
// backend must agree on. It is pure: the model's records, the history of flows and a new flow go in, a decision comes out.
//
// Which of several endpoints a flow meets is the backend's hash; what it met is told to the oracle, which remembers it
// where a backend must.
package oracle

import (
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Flow is a TCP connection that begins, or a datagram.
type Flow struct {
	Protocol model.Protocol
	Client   netip.AddrPort
	To       netip.AddrPort
}

func (f Flow) key() model.FrontendKey {
	return model.FrontendKey{VIP: f.To.Addr(), Protocol: f.Protocol, Port: f.To.Port()}
}

// Verdict is what becomes of a flow.
type Verdict uint8

// The verdicts.
const (
	// Ignored: the address is no VIP, and the packet nobody's of ours.
	Ignored Verdict = iota
	// Refused: TCP is refused or ended, a datagram is not answered.
	Refused
	// Dropped: no answer at all.
	Dropped
	// Forwarded: one of the endpoints answers.
	Forwarded
)

// String is the verdict in lower case.
func (v Verdict) String() string { return [...]string{"ignored", "refused", "dropped", "forwarded"}[v] }

// Decision is what must become of a flow.
type Decision struct {
	Verdict Verdict
	// Endpoints may take it, one of them must.
	Endpoints []netip.Addr
	// KeepsClient: the endpoint sees the client's address.
	KeepsClient bool
}

// State is what a dataplane holds, with the history that matters. It is a value: nothing changes it but the assignment of
// what After and Apply return.
type State struct {
	pools     map[model.PoolID]model.Pool
	frontends map[model.FrontendKey]model.Frontend
	// datagrams is where UDP flows went, sticky where the clients of a frontend with affinity did.
	datagrams map[Flow]trace
	sticky    map[client]netip.Addr
}

// trace is where a UDP flow went.
type trace struct {
	endpoint netip.Addr
	port     uint16
	// loose: since then the frontend had another pool or target port, or the endpoint was away for a while. Whether the flow goes on with
	// an endpoint that is there now, or is a new one, is the dataplane's affair; the client is served either way.
	loose bool
}

// client is one of a frontend.
type client struct {
	frontend model.FrontendKey
	address  netip.Addr
}

// New returns a state that serves nothing.
func New() State { return State{} }

// Decide says what must become of a flow.
func (s State) Decide(f Flow) Decision {
	frontend, served := s.frontends[f.key()]
	if !served {
		if s.isVIP(f.To.Addr()) {
			return Decision{Verdict: Refused}
		}
		return Decision{Verdict: Ignored}
	}
	d := Decision{Verdict: Forwarded, KeepsClient: frontend.Forwarding != model.NAT || frontend.ProxyProtocol}
	// A flow that is known goes on; a connection that begins is none.
	known, seen := s.datagrams[f]
	if seen && !known.loose {
		d.Endpoints = []netip.Addr{known.endpoint}
		return d
	}
	inside := func(p netip.Prefix) bool { return p.Contains(f.Client.Addr()) }
	if frontend.Restricted && !slices.ContainsFunc(frontend.SourceRanges, inside) {
		return Decision{Verdict: Dropped}
	}
	d.Endpoints = candidates(s.pools[frontend.Pool])
	if len(d.Endpoints) == 0 {
		return Decision{Verdict: Refused}
	}
	if seen && s.mayStay(frontend, known) && !slices.Contains(d.Endpoints, known.endpoint) {
		d.Endpoints = append(d.Endpoints, known.endpoint)
	}
	if known, ok := s.sticky[client{f.key(), f.Client.Addr()}]; ok {
		d.Endpoints = []netip.Addr{known}
	}
	return d
}

func (s State) isVIP(address netip.Addr) bool {
	for key := range s.frontends {
		if key.VIP == address {
			return true
		}
	}
	return false
}

// candidates are the endpoints that get new flows: the active ones; while there are none the unhealthy ones, since a prober
// that is cut off must not take a tenant down; and while all drain, those.
func candidates(p model.Pool) []netip.Addr {
	for _, state := range []model.EndpointState{model.Active, model.Unhealthy, model.Draining} {
		var found []netip.Addr
		for _, e := range p.Endpoints {
			if e.State == state {
				found = append(found, e.Address)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// After is the state when the flow has met an endpoint.
func (s State) After(f Flow, endpoint netip.Addr) State {
	frontend, served := s.frontends[f.key()]
	if !served {
		return s
	}
	if f.Protocol == model.UDP {
		s.datagrams = with(s.datagrams, f, trace{endpoint: endpoint, port: frontend.TargetPort})
	}
	if frontend.AffinityTimeout > 0 {
		s.sticky = with(s.sticky, client{f.key(), f.Client.Addr()}, endpoint)
	}
	return s
}

// Apply is the state with other records. What it remembers of flows that may not go on is forgotten.
func (s State) Apply(snapshot model.Snapshot) State {
	next := State{pools: map[model.PoolID]model.Pool{}, frontends: map[model.FrontendKey]model.Frontend{}, datagrams: map[Flow]trace{}, sticky: map[client]netip.Addr{}}
	for _, p := range snapshot.Pools {
		next.pools[p.ID] = p
	}
	for _, f := range snapshot.Frontends {
		next.frontends[f.FrontendKey] = f
	}
	for flow, trace := range s.datagrams {
		before, now := s.frontends[flow.key()], next.frontends[flow.key()]
		if next.isSame(before, flow.key()) {
			trace.loose = trace.loose || now.Pool != before.Pool || !next.mayStay(now, trace)
			next.datagrams[flow] = trace
		}
	}
	for c, endpoint := range s.sticky {
		before, now := s.frontends[c.frontend], next.frontends[c.frontend]
		if now.AffinityTimeout > 0 && before.Pool == now.Pool && slices.Contains(candidates(next.pools[now.Pool]), endpoint) {
			next.sticky[c] = endpoint
		}
	}
	return next
}

// isSame reports whether the frontend is still what it was to a flow.
func (s State) isSame(before model.Frontend, key model.FrontendKey) bool {
	now, served := s.frontends[key]
	return served && now.Owner == before.Owner && now.Forwarding == before.Forwarding
}

// mayStay reports whether a UDP flow may be where it went.
func (s State) mayStay(f model.Frontend, t trace) bool {
	pool := s.pools[f.Pool]
	for _, e := range pool.Endpoints {
		if e.Address == t.endpoint && f.TargetPort == t.port {
			return e.State != model.Unhealthy || slices.Contains(candidates(pool), t.endpoint)
		}
	}
	return false
}

// with returns a copy of the map with one entry more.
func with[K comparable, V any](m map[K]V, key K, value V) map[K]V {
	out := make(map[K]V, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	out[key] = value
	return out
}
