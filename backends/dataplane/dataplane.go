// Package dataplane is the contract between the manager and the dataplane, which moves packets.
//
// A plugin implements Dataplane and calls plugin.Serve. The manager starts it as a process of its own. The manager decides
// everything: which nodes, their health, weights and stable ids. A plugin applies the model and reports, and never decides.
// Kernel state and running proxies stay when the plugin's process ends. A plugin that has not been sent the model yet does
// not remove them.
//
// # Packets
//
// A dataplane takes packets for the VIPs of its frontends at every interface of its host, also from nodes. The host's routes say
// where packets to endpoints and answers to clients leave. In mode nat, endpoints see the address that the host would use for a
// connection of its own to the endpoint, and any port that the host does not use.
//
// The manager announces VIPs, by ARP and NDP or by BGP, at one gateway or at several. All gateways hold all VIPs. So a dataplane
// answers no ARP request and no neighbour solicitation for a VIP, and does not make the kernel answer: a VIP is on no interface
// that clients reach.
//
// # Flows
//
// A new flow gets an endpoint that may get new flows: an active one; if there is none, an unhealthy one; else a draining one.
// All gateways select the same one: by the table of package maglev (MaglevTable), or by a table of the dataplane's own. If the pool
// is empty, the flow is refused.
//
// What happens to existing flows:
//
//   - An established TCP connection stays with its endpoint and target port. It continues when the endpoint drains, becomes
//     unhealthy or leaves the pool, and when pool, target port, forwarding mode or limits of its frontend change.
//   - A TCP connection that the endpoint has not answered yet chooses again once its endpoint is unhealthy beside others, or is
//     gone: with the client's next SYN, or with a proxy's next attempt.
//   - A UDP flow stays with its endpoint while that is active or draining. Its next datagram is a new flow once the endpoint is
//     unhealthy beside others, or is gone, and after a change of the forwarding mode. After a change of the pool or the target
//     port of its frontend it may be either. One datagram may be lost then, and no more.
//   - A change of source ranges holds for new flows. Flows of clients that stay inside continue. Others may end.
//   - The flows of a frontend end when it is deleted: those of UDP at once, those of TCP at the latest when another tenant gets its
//     key. A change of the tenant ends all of them at once, also those of clients that return later. A change of the owner alone
//     may end them.
//   - Every other change leaves all flows of a frontend alone, and so does the end of a plugin's process, in whatever way it ends.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"kubelb.k8c.io/core/model"
)

// Feature is an optional feature of a dataplane. IPv4, IPv6, TCP and UDP are not optional, so they are no features.
type Feature string

// The features of this version of the contract. Weights and Drain are the two that no field of a frontend needs: each dataplane gets
// pools with weights and draining endpoints, and takes them.
const (
	SourceRanges Feature = "source-ranges"
	// Affinity keeps all flows of a client address at one endpoint of a frontend.
	Affinity Feature = "affinity"
	// AffinityTimeout keeps a client's endpoint for as long as the frontend says, even if endpoints join the pool. Without
	// it, a client keeps its endpoint until the pool changes, without a time limit.
	AffinityTimeout Feature = "affinity-timeout"
	// Weights gives each endpoint new flows in proportion to its weight. Without it the shares are any, but each active endpoint
	// gets new flows.
	Weights Feature = "weights"
	// MaglevTable selects the endpoint of a new flow by the table of package core/maglev: the dataplane's hash of the flow, modulo the size of the
	// table, is the row. The hash does not depend on the pool. Without it a dataplane has a table of its own. It depends on the ids, weights and
	// states of the pool's endpoints only, it is the same on all gateways, and a change of the pool moves few flows.
	MaglevTable Feature = "maglev-table"
	// Drain keeps the flows of draining endpoints. Without it they may end. A draining endpoint gets no new flow beside an active
	// one in any dataplane.
	Drain         Feature = "drain"
	Transparent   Feature = "transparent"
	Direct        Feature = "direct"
	ProxyProtocol Feature = "proxy-protocol-v2"
	// Limits bounds how many flows a frontend has at once, RateLimits how many begin in a second, on each gateway. Flows beyond a limit are
	// dropped or refused.
	Limits     Feature = "limits"
	RateLimits Feature = "rate-limits"
	// IdleTimeout ends flows that are silent for the frontend's timeout. Every dataplane keeps all others for long: an answered UDP flow without
	// packets keeps its endpoint for at least 30 seconds, and a connection, also a half-closed one, for longer than that.
	IdleTimeout Feature = "idle-timeout"
	// ICMPEcho answers echo requests to a VIP with a frontend, of all sizes, also if they are fragmented.
	ICMPEcho Feature = "icmp-echo"
	// PathMTU makes packets fit that are too large for a link on either side of the gateway: their sender learns the MTU by an ICMP error, or
	// the dataplane sends smaller ones.
	PathMTU Feature = "path-mtu"
	// Refusal refuses flows at once, with a reset or an ICMP error, if the frontend has no endpoints or the endpoint refuses
	// them. Without it a connection may be accepted and then reset, and datagrams may be dropped. With Refusal and PathMTU every ICMP error about
	// a packet of a flow reaches the packet's sender, and quotes the packet as its sender sent it (RFC 5508, section 4).
	Refusal Feature = "connection-refusal"
	// Redirects redirects packets of unknown TCP connections to other gateways.
	Redirects Feature = "handover"
	// PacketHeaders forwards each packet of a flow by itself, with its headers. Only addresses and ports change, as the forwarding mode
	// says, the TTL or hop limit falls by one (in mode direct it may also stay; a redirected packet has another one), and checksums remain valid. A
	// datagram of IPv4 without a checksum may get one. All else is unchanged: DSCP, ECN, flow label, identification and flags of fragments, IPv4 options
	// and IPv6 extension headers, except what a router has to write into them, and all of TCP's header and options.
	//
	// A dataplane without this feature ends connections and makes its own, and makes datagrams anew, as a proxy does. Their headers are those of
	// the gateway's host: the DSCP is not specified, Fast Open and urgent data end at the gateway, and packets with IPv4 options or extension headers may
	// be dropped.
	PacketHeaders Feature = "packet-headers"
)

// Features returns all features.
func Features() []Feature {
	return []Feature{SourceRanges, Affinity, AffinityTimeout, Weights, MaglevTable, Drain, Transparent, Direct, ProxyProtocol, Limits, RateLimits, IdleTimeout, ICMPEcho, PathMTU, Refusal, Redirects, PacketHeaders}
}

// Description describes a dataplane.
type Description struct {
	// Name and Version are shown to operators. Name is a word in lower case.
	Name    string
	Version string
	// Features do not depend on the configuration, and do not change while the process runs.
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

// Config configures a plugin before any change. It has all that a plugin is told. What else it needs, such as interfaces, routes and
// addresses, it finds on the host, and follows when it changes.
type Config struct {
	// StateDir is an absolute path, private to this gateway and this dataplane. It survives restarts of the process and of the
	// host. Several gateways on one host have different directories, and never share state. Preflight may find no directory
	// there. At Configure there is one. The names "lock" and "run" in it are taken: plugin.Serve holds an exclusive
	// lock in the one, and the manager has the plugin's socket in the other.
	StateDir string
	// Options are the operator's --backend-option key=value pairs. Each dataplane defines its own, which all have a default. An
	// option that it does not know, or with an invalid value, is an error of Preflight and of Configure that names the option.
	Options map[string]string
}

// Generation orders the states of a model. Epoch identifies the manager process that counts Number. Generations of
// different epochs are not ordered.
type Generation struct {
	Epoch  string
	Number uint64
}

// NewEpoch returns the epoch of a manager process that begins at this time.
func NewEpoch(begin time.Time) string { return strconv.FormatInt(begin.UnixNano(), 36) }

// String returns epoch/number.
func (g Generation) String() string { return fmt.Sprintf("%s/%d", g.Epoch, g.Number) }

// Change leads from one generation to another. It may be empty. The parts of its delta take effect in the order of their fields, and a part in its own
// order. So of several upserts of one key the last one counts, and a record that is both in the upserts and in the deletes is gone afterwards: its upsert
// has no effect, and is not refused if it is invalid. plugin.Serve removes upserts without effect, so a dataplane gets each key once. It also checks the
// generations, and refuses records with invalid fields or a feature that is not declared, so that the dataplane does not see them. The dataplane itself
// refuses a frontend whose pool it does not hold (MissingPool), and what it cannot serve on this host. A delete of a record that the dataplane does not
// hold has no effect.
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

// Applied is what the dataplane holds now, also after another program has removed a part: a record with its digest is served as the record
// says, and any other record is not served. A plugin stores the digest of each record with it (Pool.Digest, Frontend.Digest), or computes it
// again. An empty digest says that it is unknown whether the dataplane has the record, or which state of it, for example after it was killed
// during a change. The manager then sends or deletes the record.
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
	// Operations counts the objects (map elements, rules, resources) that were added, changed or removed: the cost of the change. A record that is
	// added or deleted counts at least 1. An empty change, a refused record, and a delete of what does not exist count 0. The cost of a frontend does
	// not grow with the number of other frontends.
	Operations uint64
	// Failed are records that were refused. The dataplane holds their former state, or none.
	Failed []RecordError
}

// Counter counts connections, packets and bytes. A dataplane that does not count one of them says 0 for all records. What it counts is exact.
type Counter struct {
	// Connections are the TCP connections and UDP flows that got an endpoint, or that a proxy has accepted. Each counts once, however often its first
	// packet was sent. A refused or dropped flow does not count.
	//
	// Packets are the forwarded IP packets of these flows, of both directions. With Direct they are the client's packets. Bytes are the lengths of
	// these packets with their IP headers, and without link headers and padding. The host may merge packets into a larger one before the dataplane
	// gets it. Then Packets counts the merged packets, and Bytes has the length of the larger packet.
	Connections, Packets, Bytes uint64
	// Open is the current number of connections and UDP flows of a frontend, as MaxConnections counts them. It is 0 without MaxConnections.
	Open uint64
}

// EndpointKey identifies an endpoint of a pool.
type EndpointKey struct {
	Pool     model.PoolID
	Endpoint string
}

// Stats are counters since the records were created. The counters of a frontend outlive the plugin's process and changes of other records. They may begin at
// 0 again when the frontend itself changes, or when a process ends that counts. They begin at 0 with a new frontend, also if another frontend had its key
// before. A counter that has become lower has begun again.
type Stats struct {
	// Frontends has the frontends that the dataplane holds, and no others.
	Frontends map[model.FrontendKey]Counter
	// Endpoints may be empty, and may leave out endpoints without a connection. An endpoint has the connections of all frontends with its pool. If a
	// frontend gets another pool, if endpoints leave, or if the plugin's process ends, some of them may be lost or be counted for another pool.
	Endpoints map[EndpointKey]Counter
	// Drops counts dropped packets, and packets that the dataplane has answered itself, by reason, a short word with hyphens. Each packet counts once.
	// A packet to a frontend without endpoints has another reason than a packet from outside the source ranges. A dataplane that counts none has no reasons.
	// Reasons are labels of a metric, so there are few of them, and no names of records.
	Drops map[string]uint64
	// Proxied is the number of TCP connections that processes of the dataplane have with clients, and that end with these processes. It is 0
	// if the kernel forwards. A gateway that shuts down waits until it is 0.
	Proxied uint64
}

// Fault is a failure outside of a call: another program removed state, a proxy ended.
type Fault struct {
	Time time.Time
	// Message says for the operator what is wrong, and is never empty.
	Message string
	// Resync asks the manager for a resync: it ends this process and starts another one, which adopts what is left, and sends the difference to what Applied
	// then returns. Without Resync the dataplane repairs the fault itself, and the manager only logs the message.
	Resync bool
}

// PurgeGrace is how long established connections go on at least after Close with purge has begun, while another dataplane serves the same
// frontends. Plugins wait somewhat longer, as long as there are such connections.
const PurgeGrace = 3 * time.Second

// Dataplane is what a plugin implements. plugin.Serve wraps it with Checked. There is one call at a time, with two exceptions: Watch
// runs concurrently; and Describe, Preflight and Render, which change nothing, may be called at any time, even before Configure.
//
// The context of a call has the deadline of this table. If a plugin misses it, the manager kills the process, and starts another one
// after 10 s or more.
//
//	start of the process  1 min until it serves
//	Describe              10 s
//	Preflight             30 s
//	Configure, Applied    2 min
//	Apply                 1 min, and 10 ms more for each record, endpoint and source range; 15 min at most
//	Stats, Describe       15 s for both together. A plugin that misses it is not killed. After 25 s of failures it is reported
//	Watch                 none
//	Close with purge      30 s when a gateway ends for good; after a change of the dataplane 1 min for start, Configure and Close, and
//	                      again every 30 s until it succeeds
//
// A gateway that starts calls Describe, Preflight, Configure, Describe, Watch, Applied and then Apply. It starts the process again when it
// has ended. When a gateway ends, it ends the process without a call: it asks the process to end, and kills it after at most 3 s.
type Dataplane interface {
	// Describe returns name, version, features and notes.
	Describe(ctx context.Context) (Description, error)
	// Preflight checks whether this host has all that the dataplane needs with this configuration. It changes nothing, and works
	// while another process serves. Only the kernel may load modules because of it. What the host lacks is a check that fails, and no
	// error. An error says why no checks could be made, such as an unknown option. On a host where the dataplane works, no
	// required check is missing. A gateway repeats the call every five minutes, and every 30 s while something required is missing.
	Preflight(ctx context.Context, config Config) ([]Check, error)
	// Configure is called once, before Applied and Apply. It returns an error if the host lacks what the dataplane needs,
	// which says what to do. It adopts, unchanged, what an earlier process with the same StateDir left.
	Configure(ctx context.Context, config Config) error
	// Applied returns the digests of the records that the dataplane holds.
	Applied(ctx context.Context) (Applied, error)
	// Apply applies a change: pools, then frontends, then deletes. Each pool and each frontend changes atomically: a new flow
	// meets either the former record or the new one, and is never refused in between. A record that is refused is in Result and
	// does not block others. If the dataplane holds a former state of it, that serves on, and its digest stays in Applied. The record is sent again every
	// 30 s. A frontend is refused if its pool is missing, of another tenant, or of the other family. Deleting a record that does not
	// exist is no error. After an error other than ErrResync the state is unknown, and the caller resyncs. When Apply returns, the next
	// packet meets the new state. If ctx ends, or the process is killed, each record is either as before or as it should be.
	Apply(ctx context.Context, change Change) (Result, error)
	// Render returns, as text, what the dataplane would hold after Apply of the whole snapshot. It needs no privileges, and gets valid snapshots only. The
	// text is for people. It depends on the snapshot alone, and not on the order of its records. It has the address and port of each frontend and the
	// address of each endpoint, and differs if a field differs that affects forwarding. Only the command "kubelb render" calls it.
	Render(ctx context.Context, snapshot model.Snapshot) (string, error)
	// Stats returns the counters. It is called every 15 s, and every 500 ms while a gateway shuts down.
	Stats(ctx context.Context) (Stats, error)
	// Watch reports faults until ctx ends, and then returns nil. If it returns before, or with an error, the process is started again. It is the
	// place for all that a dataplane does by itself, such as to follow the host's interfaces and routes. It reports within ten seconds if another
	// program has removed an object that the dataplane has put on the host (a table of nftables, a filter or an attached program, a pinned object, a
	// route or a routing rule, an address), or has ended a process of the dataplane. The object is then restored, by the dataplane itself or after a
	// resync.
	Watch(ctx context.Context, report func(Fault)) error
	// Close ends the plugin's work. Without purge everything stays.
	//
	// With purge it removes everything of this StateDir from the dataplane and from the host, also what a former process has left and this one was
	// not sent, and returns when that is done. The host is then as it was before the first Configure, and only the lock of plugin.Serve is left in
	// StateDir. TCP connections end: client and endpoint get a reset or a FIN, also if they send nothing; with Direct, the client. What other
	// programs have on the host, and their connections, stay. A purge before Configure is an error.
	//
	// After a change of the dataplane, another one serves the same frontends on this host already. From the beginning of the call it
	// gets all new flows, and none of them fails. UDP flows go on with it. Established connections go on for PurgeGrace at least.
	// Then they go on with the other dataplane, or end with a reset, and none hangs. Without another dataplane, flows may end at
	// once.
	Close(ctx context.Context, purge bool) error
}
