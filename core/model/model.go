// Package model is the backend-neutral load-balancer model: what a dataplane is asked to hold.
//
// All LoadBalancers of a tenant target the same nodes and differ only in the node port. So endpoints live in pools, and
// a frontend is a small record that names one: a node that joins or leaves changes one pool, whatever the number of
// frontends. The model says which nodes there are, their health and their weights. A dataplane decides none of these.
package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Protocol is an IANA protocol number; only TCP and UDP are valid.
type Protocol uint8

// The protocols of a frontend.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String returns TCP or UDP, or the number of an invalid protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// ParseProtocol reads TCP, UDP or the empty string (TCP, as in Kubernetes).
func ParseProtocol(s string) (Protocol, bool) {
	switch s {
	case "TCP", "":
		return TCP, true
	case "UDP":
		return UDP, true
	}
	return 0, false
}

// MarshalText writes TCP or UDP. An invalid protocol is an error, because it could not be read again.
func (p Protocol) MarshalText() ([]byte, error) { return writeName(p, TCP, UDP) }

// UnmarshalText reads TCP or UDP.
func (p *Protocol) UnmarshalText(text []byte) error {
	if !parseName(p, text, TCP, UDP) {
		return fmt.Errorf("protocol %q is neither TCP nor UDP", text)
	}
	return nil
}

// writeName returns the name of a value, and an error if it is none of the values.
func writeName[T interface {
	comparable
	fmt.Stringer
}](value T, values ...T) ([]byte, error) {
	if !slices.Contains(values, value) {
		return nil, fmt.Errorf("%s is none of %v", value, values)
	}
	return []byte(value.String()), nil
}

// parseName sets out to the value that has the name, and reports whether there is one.
func parseName[T fmt.Stringer](out *T, name []byte, values ...T) bool {
	i := slices.IndexFunc(values, func(value T) bool { return value.String() == string(name) })
	if i >= 0 {
		*out = values[i]
	}
	return i >= 0
}

// EndpointState says which flows an endpoint may get.
type EndpointState uint8

const (
	// Active endpoints get new flows.
	Active EndpointState = iota
	// Draining endpoints keep their flows and get no new ones.
	Draining
	// Unhealthy endpoints get no new flows. The other endpoints get their share.
	Unhealthy
)

// String returns the state's name in lower case.
func (s EndpointState) String() string {
	switch s {
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Unhealthy:
		return "unhealthy"
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// MarshalText writes the state's name. An invalid state is an error.
func (s EndpointState) MarshalText() ([]byte, error) {
	return writeName(s, Active, Draining, Unhealthy)
}

// UnmarshalText reads the state's name.
func (s *EndpointState) UnmarshalText(text []byte) error {
	if !parseName(s, text, Active, Draining, Unhealthy) {
		return fmt.Errorf("state %q is none of active, draining, unhealthy", text)
	}
	return nil
}

// Endpoint is one node of the tenant in a pool.
type Endpoint struct {
	// ID is stable for the life of the node and unique in its pool, with at most MaxEndpointID bytes. The choice of an endpoint
	// hashes the ID, and not the address.
	ID string `json:"id"`
	// Address is where packets go. All addresses of a pool are of one family.
	Address netip.Addr `json:"address"`
	// Weight is the endpoint's share relative to the others', 1 to 65535.
	Weight uint16        `json:"weight"`
	State  EndpointState `json:"state"`
}

// PoolID names a pool. It starts with the tenant's name, so that pools are never shared between tenants.
type PoolID string

// Tenant is the name that the ID starts with.
func (id PoolID) Tenant() string {
	tenant, _, _ := strings.Cut(string(id), "/")
	return tenant
}

// Pool is a set of endpoints that frontends share. If it is empty, connections are refused.
type Pool struct {
	ID        PoolID     `json:"id"`
	Tenant    string     `json:"tenant"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// ObjectName is a namespace and a name on the hub.
type ObjectName struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String returns namespace/name.
func (o ObjectName) String() string { return o.Namespace + "/" + o.Name }

// Forwarding is the forwarding mode: what is rewritten in packets to the node.
type Forwarding uint8

const (
	// NAT rewrites destination and source. The node answers through the gateway and does not see the client's address.
	NAT Forwarding = iota
	// Transparent rewrites the destination only. The nodes must route answers through the gateway.
	Transparent
	// Direct rewrites the MAC address only. The node answers the client itself.
	Direct
)

// String returns the mode's name in lower case.
func (f Forwarding) String() string {
	switch f {
	case NAT:
		return "nat"
	case Transparent:
		return "transparent"
	case Direct:
		return "direct"
	}
	return fmt.Sprintf("forwarding-%d", uint8(f))
}

// MarshalText writes the mode's name. An invalid mode is an error.
func (f Forwarding) MarshalText() ([]byte, error) { return writeName(f, NAT, Transparent, Direct) }

// UnmarshalText reads the mode's name.
func (f *Forwarding) UnmarshalText(text []byte) error {
	if !parseName(f, text, NAT, Transparent, Direct) {
		return fmt.Errorf("forwarding %q is none of nat, transparent, direct", text)
	}
	return nil
}

// FrontendKey identifies a frontend: no two may share it.
type FrontendKey struct {
	VIP      netip.Addr `json:"vip"`
	Protocol Protocol   `json:"protocol"`
	Port     uint16     `json:"port"`
}

// String returns, for example, TCP 203.0.113.1:80 or UDP [2001:db8::1]:53.
func (k FrontendKey) String() string {
	return k.Protocol.String() + " " + netip.AddrPortFrom(k.VIP, k.Port).String()
}

// Compare orders keys by address, port and protocol.
func (k FrontendKey) Compare(o FrontendKey) int {
	return cmp.Or(k.VIP.Compare(o.VIP), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Protocol, o.Protocol))
}

// Frontend is one served port of one external address.
type Frontend struct {
	FrontendKey
	// Owner is the LoadBalancer on the hub that this frontend belongs to.
	Owner  ObjectName `json:"owner"`
	Tenant string     `json:"tenant"`
	// Pool is of the VIP's family and of the same tenant.
	Pool PoolID `json:"pool"`
	// TargetPort is the port on the pool's endpoints, 1 to 65535. With Direct, packets keep the frontend's port.
	TargetPort uint16     `json:"targetPort"`
	Forwarding Forwarding `json:"forwarding"`
	// AffinityTimeout is how long a client address stays with its endpoint after its last new flow, in whole seconds;
	// 0 means no affinity.
	AffinityTimeout time.Duration `json:"-"`
	// SourceRanges are the client networks that may connect if Restricted is set: masked and of the VIP's family. A client that
	// is in any of them may connect: one may be inside another, and their order makes no difference. If Restricted is set and
	// SourceRanges is empty, no client may connect.
	SourceRanges []netip.Prefix `json:"sourceRanges,omitempty"`
	Restricted   bool           `json:"restricted,omitempty"`
	// IdleTimeout is how long a flow without packets is kept. 0 means the dataplane's default.
	IdleTimeout time.Duration `json:"-"`
	// ProxyProtocol asks for a PROXY protocol v2 header towards the endpoint.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`
	// MaxConnections and MaxNewPerSecond limit the frontend on each gateway; 0 means no limit.
	MaxConnections  uint32 `json:"maxConnections,omitempty"`
	MaxNewPerSecond uint32 `json:"maxNewPerSecond,omitempty"`
	// Redirect redirects packets of connections that this gateway does not know. The zero value redirects none. It is for TCP and NAT
	// only: in the other modes, and with UDP, every gateway sends such packets to the same endpoint.
	Redirect Redirect `json:"handover,omitzero"`
}

// MaxRedirects is the highest Redirect.Limit.
const MaxRedirects = 15

// Redirect redirects packets of TCP connections that a gateway does not know until they arrive at the gateway that knows the connection.
// Each gateway sends such a packet to its Next, unchanged but for the TTL (IPv6: hop limit). The TTL counts the redirects: it is 255 less
// their number. A packet with a TTL of 255 or below 240 has not been redirected yet. The last gateway resets the connection.
type Redirect struct {
	// Next is the address of the next gateway, on a link of this gateway.
	Next netip.Addr `json:"next"`
	// Limit is how often a packet may be redirected altogether, 1 to MaxRedirects. After that the gateway resets the connection.
	Limit uint8 `json:"asks"`
}

// IsZero reports whether no packets are redirected.
func (h Redirect) IsZero() bool { return h == Redirect{} }

// Snapshot is a whole model in canonical order: pools by ID, frontends by key.
type Snapshot struct {
	Pools     []Pool     `json:"pools,omitempty"`
	Frontends []Frontend `json:"frontends,omitempty"`
}

// Canonical returns a sorted copy of the snapshot. Endpoints are sorted by ID, source ranges by prefix.
func (s Snapshot) Canonical() Snapshot {
	out := Snapshot{Pools: slices.Clone(s.Pools), Frontends: slices.Clone(s.Frontends)}
	for i := range out.Pools {
		out.Pools[i].Endpoints = slices.Clone(out.Pools[i].Endpoints)
		slices.SortFunc(out.Pools[i].Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	}
	for i := range out.Frontends {
		out.Frontends[i].SourceRanges = slices.SortedFunc(slices.Values(out.Frontends[i].SourceRanges), ComparePrefix)
	}
	slices.SortFunc(out.Pools, func(a, b Pool) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(out.Frontends, func(a, b Frontend) int { return a.Compare(b.FrontendKey) })
	return out
}

// ComparePrefix orders prefixes by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Text returns the pool as lines: all that affects forwarding, and nothing else. Digests are hashes of it.
func (p Pool) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pool %s tenant=%s\n", p.ID, p.Tenant)
	for _, e := range p.Endpoints {
		fmt.Fprintf(&b, "  endpoint %s address=%s weight=%d %s\n", e.ID, e.Address, e.Weight, e.State)
	}
	return b.String()
}

// Text returns the frontend as one line. Default values are left out.
func (f Frontend) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "frontend %s pool=%s target=%d", f.FrontendKey, f.Pool, f.TargetPort)
	if f.Forwarding != NAT {
		fmt.Fprintf(&b, " forwarding=%s", f.Forwarding)
	}
	if f.AffinityTimeout > 0 {
		fmt.Fprintf(&b, " affinity=%s", f.AffinityTimeout)
	}
	if f.Restricted {
		parts := make([]string, len(f.SourceRanges))
		for i, r := range f.SourceRanges {
			parts[i] = r.String()
		}
		fmt.Fprintf(&b, " sources=[%s]", strings.Join(parts, " "))
	}
	if f.IdleTimeout > 0 {
		fmt.Fprintf(&b, " idle=%s", f.IdleTimeout)
	}
	if f.ProxyProtocol {
		b.WriteString(" proxy-protocol=v2")
	}
	if f.MaxConnections > 0 {
		fmt.Fprintf(&b, " max-connections=%d", f.MaxConnections)
	}
	if f.MaxNewPerSecond > 0 {
		fmt.Fprintf(&b, " max-new-per-second=%d", f.MaxNewPerSecond)
	}
	if !f.Redirect.IsZero() {
		fmt.Fprintf(&b, " handover=%s,%d", f.Redirect.Next, f.Redirect.Limit)
	}
	fmt.Fprintf(&b, " tenant=%s owner=%s\n", f.Tenant, f.Owner)
	return b.String()
}

// Text returns the whole model, record by record in canonical order.
func (s Snapshot) Text() string {
	s = s.Canonical()
	var b strings.Builder
	for _, p := range s.Pools {
		b.WriteString(p.Text())
	}
	for _, f := range s.Frontends {
		b.WriteString(f.Text())
	}
	return b.String()
}
