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

// Options configure a Gateway.
type Options struct {
	Name string
	// Labels are the labels of the Gateway object, by which AddressPools select gateways.
	Labels map[string]string
	PluginOptions
	AnnounceOptions
	PeerOptions
	DrainOptions
	HostOptions
	TryOptions
	// Forbidden are never targets. Nodes: the management cluster's Nodes can be read. They are never targets, either.
	Forbidden []netip.Prefix
	Nodes     bool
	Probe     probe.Config
	// Metrics registers the metrics. It may be nil.
	Metrics prometheus.Registerer
	// Wake wakes the loop up. Nil makes one.
	Wake Wake
	Log  *slog.Logger
}

// PluginOptions are about the dataplane's plugin.
type PluginOptions struct {
	Plugin driver.Plugin
	// Load starts the plugin. Nil starts a process.
	Load func(plugin.Options) (driver.Process, error)
}

// AnnounceOptions are about the announcement of addresses.
type AnnounceOptions struct {
	Announcer announce.Announcer
	// Elects: one gateway answers for each address. Otherwise every gateway announces every address.
	Elects bool
	// Conflicts returns announced addresses that another host uses, too. It is nil if the announcer does not know.
	Conflicts func() []announce.Conflict
	// SetTenant is called with the tenant of an address before the address is announced, and with an empty tenant when the address is free. It may be
	// nil.
	SetTenant func(address netip.Addr, tenant string)
	// CheckedInterfaces are the interfaces on which hosts have to answer this gateway. It is empty if this is not to be checked.
	CheckedInterfaces []string
	// Speaker is the announcer if that uses BGP, else nil. Secrets of the namespace have the passwords of routers.
	Speaker   *bgp.Speaker
	Secrets   client.Reader
	Namespace string
}

// PeerOptions are about other gateways.
type PeerOptions struct {
	// Member knows the other gateways. It is nil if this gateway works alone. Right says whether this gateway may answer. It is nil if the gateway
	// always may.
	Member Member
	Right  *ownership.Right
	// LivenessLease keeps the Lease by which the controllers know that this gateway runs. It is for gateways that are no candidates, and replaces Member.
	LivenessLease Member
	// Heartbeats sends heartbeats on the segment, signed by the key that HeartbeatKey waits for. Both belong to Member.
	Heartbeats   *heartbeat.Speaker
	HeartbeatKey func(context.Context) []byte
	// Addresses returns this gateway's own addresses on the segment, to which peers redirect packets of its connections. RedirectDuration is for how long
	// they do so after a gateway has gone, or lost an address.
	Addresses        func() []netip.Addr
	RedirectDuration time.Duration
}

// DrainOptions are about the end of a gateway.
type DrainOptions struct {
	// DrainTimeout is how long Shutdown waits for connections to end, at most. With 0 it does not wait.
	DrainTimeout time.Duration
	// PurgeOnExit removes everything from the dataplane when the gateway ends after Shutdown.
	PurgeOnExit bool
	// PurgeWith is the name of the DaemonSet whose deletion means the same, empty for none. The cache has to include it, see drain.CachedDaemonSet.
	PurgeWith string
	// DrainWithNode is the name of the Node. The gateway drains while it is cordoned. Empty for none.
	DrainWithNode string
}

// HostOptions are about the gateway's host.
type HostOptions struct {
	// HostAddresses returns all addresses of this host, which are never targets. It may be nil.
	HostAddresses func() []netip.Addr
	// HostChecks checks what the gateway needs of this host with any dataplane. It may be nil.
	HostChecks func(context.Context) []dataplane.Check
	// TransitFilter filters the packets that this host forwards. It may be nil.
	TransitFilter Filter
}

// TryOptions are about connections that the gateway makes to its own ports.
type TryOptions struct {
	// TryEvery is the pause between tries of a frontend that this gateway answers for, 0 for no tries. TryFrom are the source addresses of tries, at
	// most one of each family. No host may have them.
	TryEvery time.Duration
	TryFrom  []netip.Addr
}

// Member knows the peers of this gateway, and keeps its Lease.
type Member interface {
	ownership.Peers
	report.Lease
	// LastError returns why the Lease is not held, nil if it is.
	LastError() error
	Run(ctx context.Context) error
}

// Wake wakes the loop up: the addresses to answer for may have changed. It is created before the gateway, since the gateway's dependencies use it.
type Wake chan struct{}

// NewWake returns the Wake of a gateway.
func NewWake() Wake { return make(Wake, 1) }

// Up makes the loop run. It does not block.
func (w Wake) Up() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// lease returns what keeps this gateway's Lease, nil for none.
func (o Options) lease() report.Lease {
	switch {
	case o.Member != nil:
		return o.Member
	case o.LivenessLease != nil:
		return o.LivenessLease
	}
	return nil
}
