package report

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// Metrics are the Prometheus metrics of a gateway. Their labels are bounded: tenants, routers and reasons, never Services.
type Metrics struct {
	ready, draining, mayAnswer   prometheus.Gauge
	frontends, addresses, failed prometheus.Gauge
	conflicts, handedOver        prometheus.Gauge
	hub, targets                 *prometheus.GaugeVec
	backend, sessions, detected  *prometheus.GaugeVec
	starts                       prometheus.Counter
	applies                      prometheus.Histogram
	connections, packets, bytes  *prometheus.CounterVec
	drops, tries                 *prometheus.CounterVec
	failing                      *prometheus.GaugeVec

	// last are the dataplane's counters as they were read last. The counter of a frontend starts again with the frontend.
	last      map[model.FrontendKey]dataplane.Counter
	lastDrops map[string]uint64
	// shownBackend and shownPeers are the labels that are shown now.
	shownBackend [2]string
	shownPeers   map[string]bool
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubelb_gateway_" + name, Help: help})
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_gateway_" + name, Help: help}, labels)
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &Metrics{
		ready:     gauge("ready", "Whether the dataplane runs and holds what it should."),
		draining:  gauge("draining", "Whether the gateway drains: an operator requests it (spec.draining), the process is told to end (SIGTERM), or its Node is cordoned."),
		mayAnswer: gauge("may_answer", "Whether the gateway may answer for addresses: it holds its Lease, or goes on without the hub's API."),
		frontends: gauge("frontends", "Pairs of address and port that the dataplane holds."),
		addresses: gauge("announced_addresses", "Addresses that the gateway answers for."),
		conflicts: gauge("conflicting_addresses", "Addresses that another host on the segment uses, too (layer 2)."),
		failed:    gauge("failed_records", "Records that the dataplane did not take."),
		handedOver: gauge("handed_over_addresses",
			"Addresses for which packets of unknown connections are redirected to the gateway that answered before (layer 2). With BGP gateways always redirect to one another."),
		hub:         gauges("hub_reachable", "Whether the gateway reaches the hub's API: it renews its Lease."),
		targets:     gauges("health_check_targets", "Targets on tenants' nodes that are checked, by health: healthy, or unhealthy.", "state"),
		backend:     gauges("backend_info", "The dataplane; always 1.", "backend", "version"),
		sessions:    gauges("bgp_session_up", "Whether there is a BGP session with a router.", "peer"),
		detected:    gauges("bfd_session_up", "Whether the BFD session with a router is up.", "peer"),
		starts:      prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelb_gateway_backend_starts_total", Help: "Starts of the dataplane's plugin."}),
		applies:     prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubelb_gateway_apply_seconds", Help: "Duration of a change of the dataplane.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
		connections: counters("kubelb_tenant_connections_total", "Connections and UDP flows that were forwarded.", "tenant"),
		packets:     counters("kubelb_tenant_packets_total", "Packets that were forwarded, where the dataplane counts them.", "tenant"),
		bytes:       counters("kubelb_tenant_bytes_total", "Bytes that were forwarded, where the dataplane counts them.", "tenant"),
		drops:       counters("kubelb_gateway_dropped_packets_total", "Packets that were dropped, or answered by the gateway itself.", "reason"),
		tries:       counters("kubelb_gateway_tries_total", "Tries of the gateway's own frontends, by outcome: answered, unanswered, refused, reset, closed, unreachable.", "outcome"),
		failing:     gauges("failing_frontends", "Frontends that the gateway answers for and can try, and to which connections fail, by whether their nodes answer the gateway itself: answer, or fail. Frontends with a limit of connections count as fail, since the limit may be the reason.", "nodes"),
		last:        map[model.FrontendKey]dataplane.Counter{}, lastDrops: map[string]uint64{},
	}
}

// Register registers the metrics; nil registers nothing.
func (m *Metrics) Register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.ready, m.draining, m.mayAnswer, m.frontends, m.addresses, m.conflicts, m.failed, m.handedOver, m.hub, m.targets, m.backend, m.sessions, m.detected,
		m.starts, m.applies, m.connections, m.packets, m.bytes, m.drops, m.tries, m.failing} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// Started implements driver.Observer.
func (m *Metrics) Started() { m.starts.Inc() }

// Applied implements driver.Observer.
func (m *Metrics) Applied(took time.Duration) { m.applies.Observe(took.Seconds()) }

// Tried counts a try.
func (m *Metrics) Tried(outcome string) { m.tries.WithLabelValues(outcome).Inc() }

func setBool(g prometheus.Gauge, value bool) {
	if value {
		g.Set(1)
	} else {
		g.Set(0)
	}
}

// Gauges are values that the Gateway object does not have.
type Gauges struct {
	Draining, MayAnswer bool
	// Hub says whether the hub's API is reached; nil if this is not known.
	Hub *bool
	// Failed counts records, Redirected addresses that are redirected to their former gateways.
	Failed, Redirected int
	// Targets counts the checked targets, Unhealthy the unhealthy ones among them.
	Targets, Unhealthy int
	// Failing counts frontends to which connections fail though their nodes answer the gateway itself.
	Failing int
}

// Show sets the metrics from the status of the Gateway object, and from the gauges.
func (m *Metrics) Show(s *v1alpha1.GatewayStatus, f Gauges) {
	setBool(m.ready, meta.IsStatusConditionPresentAndEqual(s.Conditions, v1alpha1.ConditionReady, metav1.ConditionTrue))
	setBool(m.draining, f.Draining)
	setBool(m.mayAnswer, f.MayAnswer)
	if f.Hub != nil {
		setBool(m.hub.WithLabelValues(), *f.Hub)
	}
	m.frontends.Set(float64(s.Frontends))
	m.addresses.Set(float64(s.AnnouncedAddresses))
	m.conflicts.Set(float64(len(s.Conflicts)))
	m.failed.Set(float64(f.Failed))
	m.handedOver.Set(float64(f.Redirected))
	m.failing.Reset() // it is not known while nothing can be tried
	if s.Tries != nil && s.Tries.Problem == "" {
		m.failing.WithLabelValues("answer").Set(float64(f.Failing))
		m.failing.WithLabelValues("fail").Set(float64(int(s.Tries.Failing) - f.Failing))
	}
	m.targets.WithLabelValues("healthy").Set(float64(f.Targets - f.Unhealthy))
	m.targets.WithLabelValues("unhealthy").Set(float64(f.Unhealthy))
	if shown := [2]string{s.Backend.Name, s.Backend.Version}; shown != m.shownBackend {
		m.backend.Reset()
		m.backend.WithLabelValues(shown[:]...).Set(1)
		m.shownBackend = shown
	}
	before := m.shownPeers
	m.shownPeers = map[string]bool{}
	for _, session := range s.BGPSessions {
		m.shownPeers[session.Peer] = true
		delete(before, session.Peer)
		setBool(m.sessions.WithLabelValues(session.Peer), session.State == v1alpha1.BGPEstablished)
		if session.BFD == "" {
			m.detected.DeleteLabelValues(session.Peer) // BFD may have been turned off
		} else {
			setBool(m.detected.WithLabelValues(session.Peer), session.BFD == "Up")
		}
	}
	for peer := range before {
		m.sessions.DeleteLabelValues(peer)
		m.detected.DeleteLabelValues(peer)
	}
}

// Last returns the counters of the last call of Add.
func (m *Metrics) Last() map[model.FrontendKey]dataplane.Counter { return m.last }

// Add adds the differences to the last counters. A counter that has become lower belongs to another frontend.
func (m *Metrics) Add(stats dataplane.Stats, tenantOf func(model.FrontendKey) string) {
	since := func(current, former uint64) float64 {
		if current < former {
			return float64(current)
		}
		return float64(current - former)
	}
	next := make(map[model.FrontendKey]dataplane.Counter, len(stats.Frontends))
	for key, current := range stats.Frontends {
		next[key] = current
		tenant := tenantOf(key)
		if tenant == "" {
			continue
		}
		former := m.last[key]
		m.connections.WithLabelValues(tenant).Add(since(current.Connections, former.Connections))
		m.packets.WithLabelValues(tenant).Add(since(current.Packets, former.Packets))
		m.bytes.WithLabelValues(tenant).Add(since(current.Bytes, former.Bytes))
	}
	m.last = next
	for reason, current := range stats.Drops {
		m.drops.WithLabelValues(reason).Add(since(current, m.lastDrops[reason]))
		m.lastDrops[reason] = current
	}
}
