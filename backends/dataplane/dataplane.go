// Package dataplane is the contract between the manager and the dataplane, which moves packets.
//
// A plugin implements Dataplane and calls plugin.Serve. The manager starts it as a process of its own. The manager decides
// everything: which nodes, their health, weights and stable ids. A plugin applies the model and reports, and never decides.
// Kernel state and running proxies stay when the plugin's process ends. A plugin that has not been sent the model yet does
// not remove them.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kubelb.k8c.io/core/model"
)

// Feature is an optional feature of a dataplane. IPv4, IPv6, TCP and UDP are not optional, so they are no features.
type Feature string

// The features of this version of the contract.
const (
	SourceRanges Feature = "source-ranges"
	Affinity     Feature = "affinity"
	// AffinityTimeout keeps a client's endpoint for as long as the frontend says, even if endpoints join the pool. Without
	// it, a client keeps its endpoint until the pool changes, without a time limit.
	AffinityTimeout Feature = "affinity-timeout"
	Weights         Feature = "weights"
	// MaglevTable selects the endpoint of a new flow by the table of package core/maglev: the dataplane's hash of the flow, modulo the size of the
	// table, is the row. The hash does not depend on the pool. Without it a dataplane has a table of its own. It depends on the ids, weights and
	// states of the pool's endpoints only, it is the same on all gateways, and a change of the pool moves few flows.
	MaglevTable   Feature = "maglev-table"
	Drain         Feature = "drain"
	Transparent   Feature = "transparent"
	Direct        Feature = "direct"
	ProxyProtocol Feature = "proxy-protocol-v2"
	// Limits bounds how many flows a frontend has at once, RateLimits how many begin in a second, on each gateway. Flows beyond a limit are
	// dropped or refused.
	Limits      Feature = "limits"
	RateLimits  Feature = "rate-limits"
	IdleTimeout Feature = "idle-timeout"
	ICMPEcho    Feature = "icmp-echo"
	PathMTU     Feature = "path-mtu"
	// Refusal refuses flows at once, with a reset or an ICMP error, if the frontend has no endpoints or the endpoint refuses
	// them. Without it a connection may be accepted and then reset, and datagrams may be dropped.
	Refusal Feature = "connection-refusal"
	// Redirects redirects packets of unknown TCP connections to other gateways.
	Redirects Feature = "handover"
)

// Features returns all features.
func Features() []Feature {
	return []Feature{SourceRanges, Affinity, AffinityTimeout, Weights, MaglevTable, Drain, Transparent, Direct, ProxyProtocol, Limits, RateLimits, IdleTimeout, ICMPEcho, PathMTU, Refusal, Redirects}
}

// Description describes a dataplane.
type Description struct {
	Name     string
	Version  string
	Features []Feature
	// Notes are sentences for the operator about how the dataplane works on this host. They are complete once it is configured, and may change later.
	Notes []string
}

// Lacks returns a feature that the frontend needs and the dataplane does not have.
func (d Description) Lacks(f model.Frontend) (Feature, bool) {
	for _, need := range []struct {
		needed  bool
		feature Feature
	}{
		{f.Restricted, SourceRanges}, {f.AffinityTimeout > 0, Affinity}, {f.Forwarding == model.Transparent, Transparent},
		{f.Forwarding == model.Direct, Direct}, {f.ProxyProtocol, ProxyProtocol},
		{f.MaxConnections > 0, Limits}, {f.MaxNewPerSecond > 0, RateLimits}, {f.IdleTimeout > 0, IdleTimeout},
		{!f.Redirect.IsZero(), Redirects},
	} {
		if need.needed && !slices.Contains(d.Features, need.feature) {
			return need.feature, true
		}
	}
	return "", false
}

// Config configures a plugin before any change. Several gateways on one host never share state: each has its own Node and
// StateDir.
type Config struct {
	// Node is the gateway's name.
	Node string
	// StateDir is private to this gateway and survives restarts. plugin.Serve holds an exclusive lock in it.
	StateDir string
	// Options are the operator's --backend-option key=value pairs.
	Options map[string]string
}

// Generation orders the states of a model. Epoch identifies the manager process that counts Number. Generations of
// different epochs are not ordered.
type Generation struct {
	Epoch  string
	Number uint64
}

// String returns epoch/number.
func (g Generation) String() string { return fmt.Sprintf("%s/%d", g.Epoch, g.Number) }

// Change leads from one generation to another. The parts of its delta take effect in the order of their fields, and a part in its own order. So of
// several upserts of one key the last one counts, and a record that is both in the upserts and in the deletes is gone afterwards: its upsert has no
// effect, and is not refused if it is invalid. plugin.Serve removes upserts without effect, so a dataplane gets each key once. A delete of a record
// that the dataplane does not hold has no effect.
type Change struct {
	Base, Next Generation
	model.Delta
}

// RecordError says that one record was refused. The other records of its Change are applied.
type RecordError struct {
	// Pool or Frontend names the record; the other one is zero.
	Pool     model.PoolID
	Frontend model.FrontendKey
	Message  string
}

// Record returns the record's name.
func (e RecordError) Record() string {
	if e.Pool != "" {
		return "pool " + string(e.Pool)
	}
	return "frontend " + e.Frontend.String()
}

// Applied is what the dataplane holds now.
type Applied struct {
	// Generation is zero after a restart.
	Generation Generation
	model.Digests
}

// ErrResync says that the dataplane is not at the change's base. The caller calls Applied and sends the difference from that,
// with its generation as the base.
var ErrResync = errors.New("not at the base generation: resync")

// RequireBase returns ErrResync, with both generations, unless the dataplane is at the change's base.
func (c Change) RequireBase(at Generation) error {
	if c.Base != at {
		return fmt.Errorf("the dataplane is at %s, the change is based on %s: %w", at, c.Base, ErrResync)
	}
	return nil
}

// Result is the outcome of an Apply.
type Result struct {
	Generation Generation
	// Operations counts the objects (map elements, rules, resources) that were added or removed: the cost of the change.
	Operations uint64
	// Failed are records that were refused. The dataplane holds their former state, or none.
	Failed []RecordError
}

// Counter counts connections, packets and bytes. A dataplane may count only some of them.
type Counter struct {
	Connections, Packets, Bytes uint64
	// Open is the current number of connections and UDP flows of a frontend, as MaxConnections counts them. It is 0 without MaxConnections.
	Open uint64
}

// EndpointKey identifies an endpoint of a pool.
type EndpointKey struct {
	Pool     model.PoolID
	Endpoint string
}

// Stats are counters since the records were created.
type Stats struct {
	Frontends map[model.FrontendKey]Counter
	Endpoints map[EndpointKey]Counter
	// Drops counts by reason, a short word with hyphens.
	Drops map[string]uint64
	// Proxied is the number of TCP connections that processes of the dataplane have with clients, and that end with these processes. It is 0
	// if the kernel forwards.
	Proxied uint64
}

// Fault is a failure outside of a call: another program removed state, a proxy ended.
type Fault struct {
	Time    time.Time
	Message string
	// Resync asks the manager for a resync.
	Resync bool
}

// Dataplane is what a plugin implements. plugin.Serve wraps it with Checked. The context of a call has a deadline, and the manager kills a plugin
// that misses it. There is one call at a time, with two exceptions: Watch runs concurrently; and Describe, Preflight and Render, which change
// nothing, may be called at any time, even before Configure.
type Dataplane interface {
	// Describe returns name, version, features and notes.
	Describe(ctx context.Context) (Description, error)
	// Preflight checks whether this host has all that the dataplane needs with this configuration. It changes nothing. Missing things
	// are checks that fail, not an error. An error says why no checks could be made, such as an unknown option.
	Preflight(ctx context.Context, config Config) ([]Check, error)
	// Configure is called once, before Applied and Apply. It returns an error if the host lacks what the dataplane needs,
	// which says what to do. It adopts, unchanged, what an earlier process of the same Node left.
	Configure(ctx context.Context, config Config) error
	// Applied returns the digests of the records that the dataplane holds.
	Applied(ctx context.Context) (Applied, error)
	// Apply applies a change: pools, then frontends, then deletes. Each pool and each frontend changes atomically: a new flow
	// meets either the former record or the new one, and is never refused in between. A record that is refused is in Result and
	// does not block others. If the dataplane holds a former state of it, that serves on, and its digest stays in Applied.
	// A frontend is refused if its pool is missing, of another tenant, or of the other family. Deleting a record that does not
	// exist is no error. After an error other than ErrResync the state is unknown, and the caller resyncs.
	Apply(ctx context.Context, change Change) (Result, error)
	// Render returns, as text, what the dataplane would hold after Apply of the whole snapshot. It needs no privileges.
	Render(ctx context.Context, snapshot model.Snapshot) (string, error)
	// Stats returns the counters.
	Stats(ctx context.Context) (Stats, error)
	// Watch reports faults until ctx ends, and then returns nil.
	Watch(ctx context.Context, report func(Fault)) error
	// Close ends the plugin's work. With purge it removes everything of this Node from the dataplane, which ends its
	// traffic. Without purge everything stays.
	Close(ctx context.Context, purge bool) error
}
