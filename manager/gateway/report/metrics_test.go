package report

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func TestMetricsAreWellNamedAndMatchTheStatus(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	m := NewMetrics()
	require.NoError(t, m.Register(r))
	status := v1alpha1.GatewayStatus{Backend: v1alpha1.GatewayBackend{Name: "nftables", Version: "1"}, Frontends: 4, AnnouncedAddresses: 2,
		Conflicts:   []v1alpha1.AddressConflict{{Address: "192.0.2.1"}, {Address: "192.0.2.2"}, {Address: "192.0.2.3"}},
		Conditions:  []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}},
		BGPSessions: []v1alpha1.BGPSession{{Peer: "a", State: v1alpha1.BGPEstablished, BFD: "Up"}, {Peer: "b", State: v1alpha1.BGPDown}}}
	m.Show(&status, Gauges{MayAnswer: true, Failed: 1, Targets: 5, Unhealthy: 2})
	m.drops.WithLabelValues("refused").Add(1)
	require.Equal(t, 3.0, testutil.ToFloat64(m.conflicts))
	require.Zero(t, testutil.CollectAndCount(m.hub), "it is not known whether the hub is reached")
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP kubelb_gateway_bgp_session_up Whether there is a BGP session with a router.
# TYPE kubelb_gateway_bgp_session_up gauge
kubelb_gateway_bgp_session_up{peer="a"} 1
kubelb_gateway_bgp_session_up{peer="b"} 0
# HELP kubelb_gateway_health_check_targets Targets on tenants' nodes that are checked, by health: healthy, or unhealthy.
# TYPE kubelb_gateway_health_check_targets gauge
kubelb_gateway_health_check_targets{state="healthy"} 3
kubelb_gateway_health_check_targets{state="unhealthy"} 2
# HELP kubelb_gateway_ready Whether the dataplane runs and holds what it should.
# TYPE kubelb_gateway_ready gauge
kubelb_gateway_ready 1
`), "kubelb_gateway_bgp_session_up", "kubelb_gateway_health_check_targets", "kubelb_gateway_ready"))
	require.Equal(t, 1.0, testutil.ToFloat64(m.detected))
	status.BGPSessions[0].BFD = ""
	m.Show(&status, Gauges{})
	require.Zero(t, testutil.CollectAndCount(m.detected), "BFD was turned off for the router")
	require.Equal(t, 2, testutil.CollectAndCount(m.sessions))
	status.BGPSessions, status.Conflicts = status.BGPSessions[1:], nil
	status.Conditions[0].Status = metav1.ConditionFalse
	reached := true
	m.Show(&status, Gauges{Draining: true, Hub: &reached})
	require.Zero(t, testutil.ToFloat64(m.ready))
	require.Zero(t, testutil.ToFloat64(m.conflicts))
	require.Equal(t, 1.0, testutil.ToFloat64(m.draining))
	require.Equal(t, 1.0, testutil.ToFloat64(m.hub))
	require.Equal(t, 1, testutil.CollectAndCount(m.sessions), "a removed peer is not shown")
	require.Zero(t, testutil.CollectAndCount(m.detected))
}

func TestATenantsCountersNeverGoBack(t *testing.T) {
	m := NewMetrics()
	key := model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}
	unowned := model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.2"), Protocol: model.TCP, Port: 80}
	read := func(connections, dropped uint64) {
		m.Add(dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{key: {Connections: connections, Bytes: 10 * connections}, unowned: {Connections: 1000}},
			Drops: map[string]uint64{"refused": dropped}}, func(k model.FrontendKey) string {
			return map[model.FrontendKey]string{key: "a"}[k]
		})
	}
	read(5, 1)
	read(7, 1)
	require.Equal(t, 7.0, testutil.ToFloat64(m.connections.WithLabelValues("a")))
	read(2, 0)
	require.Equal(t, 9.0, testutil.ToFloat64(m.connections.WithLabelValues("a")), "a lower counter is of another frontend")
	require.Equal(t, 90.0, testutil.ToFloat64(m.bytes.WithLabelValues("a")))
	require.Equal(t, 1.0, testutil.ToFloat64(m.drops.WithLabelValues("refused")))
	require.Equal(t, 1, testutil.CollectAndCount(m.connections), "a frontend without a tenant is not counted")
}
