// Package oracle computes what a dataplane may do with a flow. Its input is the records of the model, the history of flows
// and a new flow. Its output is a decision that every dataplane must follow. It does no I/O.
//
// The hash of the dataplane selects one of several endpoints. The caller tells the oracle which endpoint the flow met, and
// the oracle remembers that where a dataplane must.
package oracle

import (
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Flow is a new TCP connection, or a datagram.
type Flow struct {
	Protocol model.Protocol
	Client   netip.AddrPort
	To       netip.AddrPort
}

func (f Flow) key() model.FrontendKey {
	return model.FrontendKey{VIP: f.To.Addr(), Protocol: f.Protocol, Port: f.To.Port()}
}

// Verdict is what happens to a flow.
type Verdict uint8

// The verdicts.
const (
	// Ignored: the address is no VIP.
	Ignored Verdict = iota
	// Refused: a connection is refused or ended, a datagram gets no answer.
	Refused
	// Dropped: the client gets no answer.
	Dropped
	// Forwarded: one of the endpoints answers.
	Forwarded
)

// String returns the verdict in lower case.
func (v Verdict) String() string { return [...]string{"ignored", "refused", "dropped", "forwarded"}[v] }

// Decision is what must happen to a flow.
type Decision struct {
	Verdict Verdict
	// Endpoints are the endpoints that may get the flow. One of them must.
	Endpoints []netip.Addr
	// KeepsClient means that the endpoint sees the client's address.
	KeepsClient bool
}

// State has the records that a dataplane holds, and the flows that it must remember. It is a value: After and Apply return
// a new state.
type State struct {
	pools     map[model.PoolID]model.Pool
	frontends map[model.FrontendKey]model.Frontend
	// udpFlows has the endpoints of UDP flows, affinity those of the clients of frontends with affinity.
	udpFlows map[Flow]udpFlow
	affinity map[client]netip.Addr
}

// udpFlow is the endpoint and the target port of a UDP flow.
type udpFlow struct {
	endpoint netip.Addr
	port     uint16
	// uncertain means that the frontend's pool or target port has changed since, or that the endpoint was gone for a while. The
	// dataplane may then continue the flow or treat it as new. The client is served in both cases.
	uncertain bool
}

// client is a client of a frontend.
type client struct {
	frontend model.FrontendKey
	address  netip.Addr
}

// New returns a state that serves nothing.
func New() State { return State{} }

// Decide returns what must happen to a flow.
func (s State) Decide(f Flow) Decision {
	frontend, served := s.frontends[f.key()]
	if !served {
		if s.isVIP(f.To.Addr()) {
			return Decision{Verdict: Refused}
		}
		return Decision{Verdict: Ignored}
	}
	d := Decision{Verdict: Forwarded, KeepsClient: frontend.Forwarding != model.NAT || frontend.ProxyProtocol}
	// A known UDP flow continues. A new connection is never a known flow.
	known, seen := s.udpFlows[f]
	if seen && !known.uncertain {
		d.Endpoints = []netip.Addr{known.endpoint}
		return d
	}
	inside := func(p netip.Prefix) bool { return p.Contains(f.Client.Addr()) }
	if frontend.Restricted && !slices.ContainsFunc(frontend.SourceRanges, inside) {
		return Decision{Verdict: Dropped}
	}
	d.Endpoints = eligible(s.pools[frontend.Pool])
	if len(d.Endpoints) == 0 {
		return Decision{Verdict: Refused}
	}
	if seen && s.mayContinue(frontend, known) && !slices.Contains(d.Endpoints, known.endpoint) {
		d.Endpoints = append(d.Endpoints, known.endpoint)
	}
	if known, ok := s.affinity[client{f.key(), f.Client.Addr()}]; ok {
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

// eligible returns the endpoints that get new flows: the active ones; if there are none, the unhealthy ones, because a
// prober without a network must not take a tenant down; else the draining ones.
func eligible(p model.Pool) []netip.Addr {
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

// After returns the state after the flow has met an endpoint.
func (s State) After(f Flow, endpoint netip.Addr) State {
	frontend, served := s.frontends[f.key()]
	if !served {
		return s
	}
	if f.Protocol == model.UDP {
		s.udpFlows = withEntry(s.udpFlows, f, udpFlow{endpoint: endpoint, port: frontend.TargetPort})
	}
	if frontend.AffinityTimeout > 0 {
		s.affinity = withEntry(s.affinity, client{f.key(), f.Client.Addr()}, endpoint)
	}
	return s
}

// Apply returns the state with other records. It forgets flows that may not continue.
func (s State) Apply(snapshot model.Snapshot) State {
	next := State{pools: map[model.PoolID]model.Pool{}, frontends: map[model.FrontendKey]model.Frontend{}, udpFlows: map[Flow]udpFlow{}, affinity: map[client]netip.Addr{}}
	for _, p := range snapshot.Pools {
		next.pools[p.ID] = p
	}
	for _, f := range snapshot.Frontends {
		next.frontends[f.FrontendKey] = f
	}
	for flow, entry := range s.udpFlows {
		before, now := s.frontends[flow.key()], next.frontends[flow.key()]
		if next.sameOwnerAndMode(before, flow.key()) {
			entry.uncertain = entry.uncertain || now.Pool != before.Pool || !next.mayContinue(now, entry)
			next.udpFlows[flow] = entry
		}
	}
	for c, endpoint := range s.affinity {
		before, now := s.frontends[c.frontend], next.frontends[c.frontend]
		if now.AffinityTimeout > 0 && before.Pool == now.Pool && slices.Contains(eligible(next.pools[now.Pool]), endpoint) {
			next.affinity[c] = endpoint
		}
	}
	return next
}

// sameOwnerAndMode reports whether owner and forwarding mode of the frontend are unchanged.
func (s State) sameOwnerAndMode(before model.Frontend, key model.FrontendKey) bool {
	now, served := s.frontends[key]
	return served && now.Owner == before.Owner && now.Forwarding == before.Forwarding
}

// mayContinue reports whether a UDP flow may continue with its endpoint.
func (s State) mayContinue(f model.Frontend, t udpFlow) bool {
	pool := s.pools[f.Pool]
	for _, e := range pool.Endpoints {
		if e.Address == t.endpoint && f.TargetPort == t.port {
			return e.State != model.Unhealthy || slices.Contains(eligible(pool), t.endpoint)
		}
	}
	return false
}

// withEntry returns a copy of the map with one more entry.
func withEntry[K comparable, V any](m map[K]V, key K, value V) map[K]V {
	out := make(map[K]V, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	out[key] = value
	return out
}
