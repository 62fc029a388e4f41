package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/bgp"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/ownership"
	"kubelb.k8c.io/manager/gateway/report"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/probe"
)

// Options are what a gateway needs to know.
type Options struct {
	Name string
	// Labels are for the Gateway object, by which AddressPools choose gateways.
	Labels map[string]string
	PluginOptions
	AnnounceOptions
	PeerOptions
	DrainOptions
	HostOptions
	TryOptions
	// Forbidden are never targets. Nodes: the management cluster's Nodes can be read, which are never targets, either.
	Forbidden []netip.Prefix
	Nodes     bool
	Probe     probe.Config
	// Metrics takes what Prometheus is told; nil for nobody.
	Metrics prometheus.Registerer
	// Wake wakes up the gateway's loop; nil makes one.
	Wake Wake
	Log  *slog.Logger
}

// PluginOptions are about the dataplane's plugin.
type PluginOptions struct {
	Backend driver.Backend
	// Load starts the plugin. Nil starts a process.
	Load func(plugin.Options) (driver.Process, error)
}

// AnnounceOptions are about how addresses are announced.
type AnnounceOptions struct {
	Announcer announce.Announcer
	// Elects: one gateway answers for each address; otherwise every gateway announces every address.
	Elects bool
	// Conflicts are addresses that the announcer has and another host says are its own; nil where nobody hears of that.
	Conflicts func() []announce.Conflict
	// SetTenant is told whose an address is before that is announced, and with an empty tenant that it is nobody's; nil where nobody shares anything.
	SetTenant func(address netip.Addr, tenant string)
	// Segment are the interfaces on which hosts have to answer this gateway; none if that is not to be found out.
	Segment []string
	// Speaker is the announcer where that is by BGP, else nil. Passwords of its peers are in Secrets of the namespace.
	Speaker   *bgp.Speaker
	Secrets   client.Reader
	Namespace string
}

// PeerOptions are about other gateways.
type PeerOptions struct {
	// Member is told of other gateways; nil where this one answers alone. Right says by its Lease whether this gateway may answer; nil where it may always.
	Member Member
	Right  *ownership.Right
	// Presence keeps the Lease by which the controllers hear of this gateway, where Member does not: it is no candidate.
	Presence Member
	// Heart is heard by other gateways on the segment, with a key that SegmentKey waits for; both belong to Member.
	Heart      *heartbeat.Speaker
	SegmentKey func(context.Context) []byte
	// Addresses are this gateway's own on the segment, to which other gateways redirect packets of connections that it may know: for Handover after a
	// gateway has gone, or lost an address.
	Addresses func() []netip.Addr
	Handover  time.Duration
}

// DrainOptions are about the end of a gateway.
type DrainOptions struct {
	// DrainTimeout is how long Shutdown waits for connections to end, at most; 0 for not at all.
	DrainTimeout time.Duration
	// PurgeOnExit removes everything from the dataplane when the gateway ends after Shutdown: it leaves for good.
	PurgeOnExit bool
	// PurgeWith names the DaemonSet whose deletion means the same; empty for none. The cache is to know of it, see drain.CachedDaemonSet.
	PurgeWith string
	// DrainWithNode names the Node that this gateway drains with when it is cordoned; empty for none.
	DrainWithNode string
}

// HostOptions are about the gateway's host.
type HostOptions struct {
	// HostAddresses are all addresses of this host, which are never targets; nil where none are known.
	HostAddresses func() []netip.Addr
	// HostChecks look at what the gateway needs of this host whatever its dataplane is; nil where nothing is looked at.
	HostChecks func(context.Context) []dataplane.Check
	// Transit keeps this host from forwarding what is no frontend's; nil leaves the host as it is.
	Transit Filter
}

// TryOptions are about connections that the gateway makes to its own ports.
type TryOptions struct {
	// TryEvery is the pause between tries of a frontend that this gateway answers for, 0 for no tries. TryFrom are the source addresses of tries, one
	// of each family at most. No host may have them.
	TryEvery time.Duration
	TryFrom  []netip.Addr
}

// Member is this gateway among its peers, and keeps its Lease.
type Member interface {
	ownership.Peers
	report.Lease
	// Trouble is why the Lease is not held, nil if it is.
	LastError() error
	Run(ctx context.Context) error
}

// Wake wakes up a gateway's loop: what it answers for may have changed. It is made before the gateway, for what the gateway depends on.
type Wake chan struct{}

// NewWake returns one for a gateway.
func NewWake() Wake { return make(Wake, 1) }

// Up has the loop look again. It does not block.
func (w Wake) Up() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// lease is what keeps this gateway's Lease, nil if nothing does.
func (o Options) lease() report.Lease {
	switch {
	case o.Member != nil:
		return o.Member
	case o.Presence != nil:
		return o.Presence
	}
	return nil
}
