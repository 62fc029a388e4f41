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

// Metrics are what a gateway tells Prometheus. Labels are bounded: by tenants, routers and reasons, never by Services.
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

	// last are the dataplane's counters as they were read last, which begin anew with their frontend.
	last      map[model.FrontendKey]dataplane.Counter
	lastDrops map[string]uint64
	// shownBackend and shownPeers are labels that stand for something now.
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
		draining:  gauge("draining", "Whether the gateway drains: an operator has told it to (spec.draining), it is told to end (SIGTERM), or its Node is cordoned."),
		mayAnswer: gauge("may_answer", "Whether the gateway may answer for addresses: it holds its Lease, or goes on without the hub's API."),
		frontends: gauge("frontends", "Pairs of address and port that the dataplane holds."),
		addresses: gauge("announced_addresses", "Addresses that the gateway answers for."),
		conflicts: gauge("conflicting_addresses", "Addresses that another host on the segment says are its own, by layer 2."),
		failed:    gauge("failed_records", "Records that the dataplane did not take."),
		handedOver: gauge("handed_over_addresses",
			"Addresses of which packets of unknown connections are sent to the gateway that answered for them before, by layer 2. By BGP gateways always ask one another."),
		hub:         gauges("hub_reachable", "Whether the gateway reaches the hub's API: it renews its Lease."),
		targets:     gauges("health_check_targets", "What is checked on tenants' nodes, by what was found: healthy, or unhealthy.", "state"),
		backend:     gauges("backend_info", "The dataplane; always 1.", "backend", "version"),
		sessions:    gauges("bgp_session_up", "Whether there is a BGP session with a router.", "peer"),
		detected:    gauges("bfd_session_up", "Whether BFD finds a router there.", "peer"),
		starts:      prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelb_gateway_backend_starts_total", Help: "How often the dataplane's process was started."}),
		applies:     prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubelb_gateway_apply_seconds", Help: "How long the dataplane took for a change.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
		connections: counters("kubelb_tenant_connections_total", "Connections and UDP flows that were forwarded.", "tenant"),
		packets:     counters("kubelb_tenant_packets_total", "Packets that were forwarded, where the dataplane counts them.", "tenant"),
		bytes:       counters("kubelb_tenant_bytes_total", "Bytes that were forwarded, where the dataplane counts them.", "tenant"),
		drops:       counters("kubelb_gateway_dropped_packets_total", "Packets that were dropped, or answered by the gateway itself.", "reason"),
		tries:       counters("kubelb_gateway_tries_total", "Connections by which the gateway has tried its own frontends, by what became of them: answered, unanswered, refused, reset, closed, unreachable.", "outcome"),
		failing:     gauges("failing_frontends", "Frontends to which connections fail, of those that the gateway answers for and can try, by whether their nodes answer the gateway itself: answer, or fail. Of frontends with a limit of connections the limit may be the reason, so that they are among fail.", "nodes"),
		last:        map[model.FrontendKey]dataplane.Counter{}, lastDrops: map[string]uint64{},
	}
}

// Register has the metrics be gathered; nil gathers nothing.
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

func set(g prometheus.Gauge, is bool) {
	if is {
		g.Set(1)
	} else {
		g.Set(0)
	}
}

// Figures are numbers that the Gateway object does not have.
type Figures struct {
	Draining, MayAnswer bool
	// Hub tells whether its API is reached; nil where nobody knows.
	Hub *bool
	// Failed are records, HandedOver addresses that are redirected to their former gateways.
	Failed, HandedOver int
	// Targets are checked, Unhealthy some of them.
	Targets, Unhealthy int
	// Failing are frontends to which connections fail though their nodes answer the gateway itself.
	Failing int
}

// Show takes over what the Gateway object says, and the figures.
func (m *Metrics) Show(s *v1alpha1.GatewayStatus, f Figures) {
	set(m.ready, meta.IsStatusConditionPresentAndEqual(s.Conditions, v1alpha1.ConditionReady, metav1.ConditionTrue))
	set(m.draining, f.Draining)
	set(m.mayAnswer, f.MayAnswer)
	if f.Hub != nil {
		set(m.hub.WithLabelValues(), *f.Hub)
	}
	m.frontends.Set(float64(s.Frontends))
	m.addresses.Set(float64(s.AnnouncedAddresses))
	m.conflicts.Set(float64(len(s.Conflicts)))
	m.failed.Set(float64(f.Failed))
	m.handedOver.Set(float64(f.HandedOver))
	m.failing.Reset() // nobody knows it while nothing can be tried
	if s.Tries != nil && s.Tries.Problem == "" {
		m.failing.WithLabelValues("answer").Set(float64(f.Failing))
		m.failing.WithLabelValues("fail").Set(float64(int(s.Tries.Failing) - f.Failing))
	}
	m.targets.WithLabelValues("healthy").Set(float64(f.Targets - f.Unhealthy))
	m.targets.WithLabelValues("unhealthy").Set(float64(f.Unhealthy))
	if is := [2]string{s.Backend.Name, s.Backend.Version}; is != m.shownBackend {
		m.backend.Reset()
		m.backend.WithLabelValues(is[:]...).Set(1)
		m.shownBackend = is
	}
	before := m.shownPeers
	m.shownPeers = map[string]bool{}
	for _, session := range s.BGPSessions {
		m.shownPeers[session.Peer] = true
		delete(before, session.Peer)
		set(m.sessions.WithLabelValues(session.Peer), session.State == v1alpha1.BGPEstablished)
		if session.BFD != "" {
			set(m.detected.WithLabelValues(session.Peer), session.BFD == "Up")
		}
	}
	for peer := range before {
		m.sessions.DeleteLabelValues(peer)
		m.detected.DeleteLabelValues(peer)
	}
}

// Last are the dataplane's counters that were added last.
func (m *Metrics) Last() map[model.FrontendKey]dataplane.Counter { return m.last }

// Add counts what has passed since the dataplane was asked last. A counter that is lower than it was belongs to another frontend.
func (m *Metrics) Add(stats dataplane.Stats, tenantOf func(model.FrontendKey) string) {
	since := func(is, was uint64) float64 {
		if is < was {
			return float64(is)
		}
		return float64(is - was)
	}
	next := make(map[model.FrontendKey]dataplane.Counter, len(stats.Frontends))
	for key, is := range stats.Frontends {
		next[key] = is
		tenant := tenantOf(key)
		if tenant == "" {
			continue
		}
		was := m.last[key]
		m.connections.WithLabelValues(tenant).Add(since(is.Connections, was.Connections))
		m.packets.WithLabelValues(tenant).Add(since(is.Packets, was.Packets))
		m.bytes.WithLabelValues(tenant).Add(since(is.Bytes, was.Bytes))
	}
	m.last = next
	for reason, is := range stats.Drops {
		m.drops.WithLabelValues(reason).Add(since(is, m.lastDrops[reason]))
		m.lastDrops[reason] = is
	}
}
