// Package dataplane is the contract between the manager and what moves packets.
//
// A backend implements Dataplane and calls plugin.Serve; the manager starts it as a process of its own. Everything is
// decided before the boundary: which nodes, their health, weights and stable ids. A backend carries out and reports; it
// never decides. Kernel state and running proxies stay when the backend's process goes: an empty or unsynced backend
// never empties them.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kubelb.k8c.io/core/model"
)

// Feature is something that not every backend can do. IPv4, IPv6, TCP and UDP are not optional and have no name here.
type Feature string

// The features of this version of the contract.
const (
	SourceRanges Feature = "source-ranges"
	Affinity     Feature = "affinity"
	// AffinityTimeout: a client's endpoint is remembered for as long as the frontend says, whatever joins the pool
	// meanwhile. Without it a client keeps its endpoint while the pool stays, for ever.
	AffinityTimeout Feature = "affinity-timeout"
	Weights         Feature = "weights"
	Drain           Feature = "drain"
	Transparent     Feature = "transparent"
	Direct          Feature = "direct"
	ProxyProtocol   Feature = "proxy-protocol-v2"
	// Limits bound how many flows a frontend has at once, RateLimits how many begin in a second: those beyond get no answer, or one that
	// ends them. Both are for each gateway by itself.
	Limits      Feature = "limits"
	RateLimits  Feature = "rate-limits"
	IdleTimeout Feature = "idle-timeout"
	ICMPEcho    Feature = "icmp-echo"
	PathMTU     Feature = "path-mtu"
	// Refusal: what is not served, or refused by an endpoint, is answered at once, with a reset before any connection or
	// with an ICMP error. Without it a connection may be accepted and then reset, and datagrams vanish.
	Refusal Feature = "connection-refusal"
	// Handover: packets of TCP connections that are not known here go to other gateways, which may know them.
	Handover Feature = "handover"
)

// Features are all features.
func Features() []Feature {
	return []Feature{SourceRanges, Affinity, AffinityTimeout, Weights, Drain, Transparent, Direct, ProxyProtocol, Limits, RateLimits, IdleTimeout, ICMPEcho, PathMTU, Refusal, Handover}
}

// Description says what a backend is and can do.
type Description struct {
	Name     string
	Version  string
	Features []Feature
	// Notes are for the operator: how the backend works on this host, as sentences. They are complete once it is configured, and may change later.
	Notes []string
}

// Lacks returns a feature that the frontend needs and the backend does not have.
func (d Description) Lacks(f model.Frontend) (Feature, bool) {
	for _, need := range []struct {
		needed  bool
		feature Feature
	}{
		{f.Restricted, SourceRanges}, {f.AffinityTimeout > 0, Affinity}, {f.Forwarding == model.Transparent, Transparent},
		{f.Forwarding == model.Direct, Direct}, {f.ProxyProtocol, ProxyProtocol},
		{f.MaxConnections > 0, Limits}, {f.MaxNewPerSecond > 0, RateLimits}, {f.IdleTimeout > 0, IdleTimeout},
		{!f.Handover.IsZero(), Handover},
	} {
		if need.needed && !slices.Contains(d.Features, need.feature) {
			return need.feature, true
		}
	}
	return "", false
}

// Config is what a backend learns before anything else. Several gateways on one host never share state: each has its own
// Node and StateDir.
type Config struct {
	// Node is the gateway's name.
	Node string
	// StateDir is private to this gateway and survives restarts. The plugin host holds an exclusive lock in it.
	StateDir string
	// Options are the operator's --backend-option key=value pairs.
	Options map[string]string
}

// Generation orders the states of a model. Epoch names the manager process that counts Number; generations of different
// epochs are not ordered.
type Generation struct {
	Epoch  string
	Number uint64
}

// String returns epoch/number.
func (g Generation) String() string { return fmt.Sprintf("%s/%d", g.Epoch, g.Number) }

// Change leads from one generation to another.
type Change struct {
	Base, Next Generation
	model.Delta
}

// RecordError is one record that could not be taken. All others of its Change are.
type RecordError struct {
	// Pool or Frontend names the record; the other one is zero.
	Pool     model.PoolID
	Frontend model.FrontendKey
	Message  string
}

// Record names the record as the model does.
func (e RecordError) Record() string {
	if e.Pool != "" {
		return "pool " + string(e.Pool)
	}
	return "frontend " + e.Frontend.String()
}

// Applied is what the dataplane holds now.
type Applied struct {
	// Generation is zero after a restart: nobody's base.
	Generation Generation
	model.Digests
}

// ErrResync says that the dataplane is not at the change's base. The caller asks for Applied and sends the difference to
// that, from its generation.
var ErrResync = errors.New("not at the base generation: resync")

// RequireBase returns ErrResync, with what is different, unless the dataplane is at the change's base.
func (c Change) RequireBase(at Generation) error {
	if c.Base != at {
		return fmt.Errorf("at %s, asked to go on from %s: %w", at, c.Base, ErrResync)
	}
	return nil
}

// Result is the outcome of an Apply.
type Result struct {
	Generation Generation
	// Operations is how many things (map elements, rules, resources) were added or removed in the dataplane: the cost of
	// the change.
	Operations uint64
	// Failed records keep their former state in the dataplane, or stay absent.
	Failed []RecordError
}

// Counter counts what passed. Backends count what they can.
type Counter struct {
	Connections, Packets, Bytes uint64
	// Open is how many connections and UDP flows a frontend has now, as its MaxConnections counts them. Of a frontend without that it is 0.
	Open uint64
}

// EndpointKey is one endpoint of a pool.
type EndpointKey struct {
	Pool     model.PoolID
	Endpoint string
}

// Stats are counters since the records came into being.
type Stats struct {
	Frontends map[model.FrontendKey]Counter
	Endpoints map[EndpointKey]Counter
	// Drops by reason, a short word with hyphens.
	Drops map[string]uint64
	// Proxied is how many TCP connections the dataplane's own processes have with clients, and which end with those. It is 0 where the kernel
	// forwards, and so goes on without them.
	Proxied uint64
}

// Fault is something that went wrong outside of a call: state taken away by somebody else, a proxy that died.
type Fault struct {
	Time    time.Time
	Message string
	// Resync asks the host to compare and repair.
	Resync bool
}

// Dataplane is implemented by a backend. plugin.Serve puts it behind Checked. The context of a call has a deadline; a backend that misses it is ended by force. Calls come one at
// a time, but for Watch, which runs beside the others, and for Describe, Preflight and Render, which may come before Configure and change
// nothing.
type Dataplane interface {
	// Describe tells name, version, features and notes.
	Describe(ctx context.Context) (Description, error)
	// Preflight checks what the backend needs of this host to work with the configuration. It changes nothing and may come at any
	// time. The error says why no checks could be made, such as an unknown option; what is missing is no error.
	Preflight(ctx context.Context, config Config) ([]Check, error)
	// Configure is called once, before Applied and Apply. It checks what the backend needs of the host and says what to
	// do where something lacks. It takes over what an earlier process of the same Node left behind, unchanged.
	Configure(ctx context.Context, config Config) error
	// Applied reads the digests of what the dataplane holds; empty when it holds nothing.
	Applied(ctx context.Context) (Applied, error)
	// Apply carries out a change: pools, then frontends, then deletes; atomically for each pool and each frontend. A
	// record that it cannot take is reported in Result and blocks no other. Deleting what is not there is no error.
	// Errors other than ErrResync mean that nothing is known about the state; the caller resyncs.
	Apply(ctx context.Context, change Change) (Result, error)
	// Render returns, as text, what Apply of the whole snapshot would hold. It needs no privilege.
	Render(ctx context.Context, snapshot model.Snapshot) (string, error)
	// Stats returns the counters.
	Stats(ctx context.Context) (Stats, error)
	// Watch reports faults until ctx ends; it then returns nil.
	Watch(ctx context.Context, report func(Fault)) error
	// Close ends the backend's work. With purge everything of this Node leaves the dataplane, the traffic with it;
	// without, all stays as it is.
	Close(ctx context.Context, purge bool) error
}
