package envoy

import (
	"net/netip"
	"os/exec"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane/golden"
	"kubelb.k8c.io/core/model"
)

func endpointAddress(last byte, state model.EndpointState) model.Endpoint {
	a := netip.AddrFrom4([4]byte{198, 51, 100, last})
	return model.Endpoint{ID: a.String(), Address: a, Weight: 1, State: state}
}

func frontend(protocol model.Protocol, vip string, port uint16, pool model.PoolID) model.Frontend {
	return model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr(vip), Protocol: protocol, Port: port}, Owner: model.ObjectName{Namespace: "tenant-a", Name: "web"},
		Tenant: "a", Pool: pool, TargetPort: 30080}
}

func example() model.Snapshot {
	six := netip.MustParseAddr("2001:db8:1::11")
	sticky := frontend(model.TCP, "203.0.113.1", 443, "a/v4")
	sticky.AffinityTimeout, sticky.Restricted, sticky.SourceRanges = time.Hour, true, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	sessions := frontend(model.UDP, "203.0.113.1", 443, "a/v4")
	sessions.AffinityTimeout = time.Hour
	return model.Snapshot{
		Pools: []model.Pool{
			{ID: "a/v4", Tenant: "a", Endpoints: []model.Endpoint{endpointAddress(11, model.Active), endpointAddress(12, model.Unhealthy), endpointAddress(13, model.Draining)}},
			{ID: "a/v6", Tenant: "a", Endpoints: []model.Endpoint{{ID: six.String(), Address: six, Weight: 3}}},
			{ID: "a/none", Tenant: "a"},
		},
		Frontends: []model.Frontend{frontend(model.TCP, "203.0.113.1", 80, "a/v4"), frontend(model.UDP, "203.0.113.1", 80, "a/v4"), sticky, sessions,
			frontend(model.TCP, "2001:db8:f::1", 80, "a/v6"), frontend(model.TCP, "203.0.113.2", 80, "a/none")},
	}
}

func TestRenderedTextIsGoldenAndEnvoyAcceptsIt(t *testing.T) {
	text, err := (&Backend{}).Render(t.Context(), example())
	require.NoError(t, err)
	path := golden.Compare(t, "example.yaml", text)
	envoy, err := exec.LookPath("../../bin/envoy")
	if err != nil {
		t.Skip("no Envoy to check it with: run 'make deps'")
	}
	output, err := exec.Command(envoy, "--mode", "validate", "--config-path", path, "--log-level", "error").CombinedOutput()
	require.NoError(t, err, string(output))
}

// placement returns the endpoints by priority, and whether each is healthy.
func placement(p model.Pool, leaving map[netip.AddrPort]time.Time) map[uint32]map[string]bool {
	return placementFor(frontend(model.TCP, "203.0.113.1", 80, "a/p"), p, leaving)
}

func placementFor(f model.Frontend, p model.Pool, leaving map[netip.AddrPort]time.Time) map[uint32]map[string]bool {
	out := map[uint32]map[string]bool{}
	for _, locality := range renderAssignment(f, p, leaving).Endpoints {
		out[locality.Priority] = map[string]bool{}
		for _, e := range locality.LbEndpoints {
			out[locality.Priority][e.GetEndpoint().Address.GetSocketAddress().Address] = e.HealthStatus == core.HealthStatus_HEALTHY
		}
	}
	return out
}

func TestOnlyServingEndpointsGetNewFlows(t *testing.T) {
	const a, b, c = "198.51.100.11", "198.51.100.12", "198.51.100.13"
	pool := func(endpoints ...model.Endpoint) model.Pool { return model.Pool{ID: "a/p", Endpoints: endpoints} }
	for name, test := range map[string]struct {
		pool model.Pool
		want map[uint32]map[string]bool
	}{
		"active before all others":            {pool(endpointAddress(11, model.Active), endpointAddress(12, model.Unhealthy), endpointAddress(13, model.Draining)), map[uint32]map[string]bool{0: {a: true}, 1: {b: false, c: true}}},
		"all unhealthy: all are used":         {pool(endpointAddress(11, model.Unhealthy), endpointAddress(12, model.Unhealthy)), map[uint32]map[string]bool{0: {a: true, b: true}}},
		"unhealthy before draining":           {pool(endpointAddress(12, model.Unhealthy), endpointAddress(13, model.Draining)), map[uint32]map[string]bool{0: {b: true}, 1: {c: true}}},
		"draining when there is nothing else": {pool(endpointAddress(13, model.Draining)), map[uint32]map[string]bool{0: {c: true}}},
		"nobody":                              {pool(), map[uint32]map[string]bool{}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, placement(test.pool, nil)) })
	}
	left := map[netip.AddrPort]time.Time{netip.MustParseAddrPort(b + ":30080"): time.Now()}
	require.Equal(t, map[uint32]map[string]bool{0: {a: true}, 1: {b: false}}, placement(pool(endpointAddress(11, model.Active)), left), "a removed endpoint is kept as unhealthy")
	require.Equal(t, map[uint32]map[string]bool{0: {b: false}}, placement(pool(), left), "priorities begin at 0")
	sessions := frontend(model.UDP, "203.0.113.1", 80, "a/p")
	sessions.AffinityTimeout = time.Hour
	unhealthy := pool(endpointAddress(11, model.Active), endpointAddress(12, model.Unhealthy), endpointAddress(13, model.Draining))
	require.Equal(t, map[uint32]map[string]bool{0: {a: true}, 1: {c: true}}, placementFor(sessions, unhealthy, left), "sessions with affinity would stay with unhealthy or removed endpoints")
}

func TestEndpointsAndPoolsAreNotInTheListener(t *testing.T) {
	f := frontend(model.TCP, "203.0.113.1", 80, "a/p")
	before := render(f, model.Pool{ID: "a/p", Endpoints: []model.Endpoint{endpointAddress(11, model.Active)}}, timeouts{}, nil)
	f.Pool, f.TargetPort = "a/q", 31000
	after := render(f, model.Pool{ID: "a/q", Endpoints: []model.Endpoint{endpointAddress(12, model.Active)}}, timeouts{}, nil)
	require.Equal(t, before.listener.String(), after.listener.String())
	require.Equal(t, before.cluster.String(), after.cluster.String())
	require.Equal(t, before.assignment.ClusterName, after.assignment.ClusterName)
	require.NotEqual(t, before.assignment.String(), after.assignment.String())
}
