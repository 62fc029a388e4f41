package envoy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/envoy/supervisor"
	"kubelb.k8c.io/core/model"
)

// withAdmin returns a backend with the example's records, whose Envoy has these pages.
func withAdmin(t *testing.T, pages map[string]string) *Backend {
	t.Helper()
	path, err := os.MkdirTemp("", "klstats") // a short path, for the socket
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(path) })
	b := &Backend{dir: supervisor.Dir(path), state: newStore(path + "/state")}
	for _, p := range example().Pools {
		b.state.setPool(p)
	}
	for _, f := range example().Frontends {
		b.state.setFrontend(f)
	}
	socket, err := net.Listen("unix", b.dir.Admin())
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, found := pages[r.URL.Path]
		if !found {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(page))
	})}
	go func() { _ = server.Serve(socket) }()
	t.Cleanup(func() { _ = server.Close() })
	return b
}

func TestConnectionsOfEndpointsAreSummedOverFrontends(t *testing.T) {
	host := func(address, active, total string) string {
		return `{"address":{"socket_address":{"address":"` + address + `"}},"stats":[{"name":"cx_active","value":"` + active + `"},{"name":"cx_total","value":"` + total + `"},{"name":"rq_total","value":"99"}]}`
	}
	cluster := func(name, hosts string) string { return `{"name":"` + name + `","host_statuses":[` + hosts + `]}` }
	b := withAdmin(t, map[string]string{"/clusters": `{"cluster_statuses":[` +
		cluster("TCP 203.0.113.1:80", host("198.51.100.11", "1", "10")+","+host("198.51.100.12", "2", "20")+","+host("198.51.100.99", "4", "40")) + "," +
		cluster("TCP 203.0.113.1:443", host("198.51.100.11", "8", "80")) + "," + cluster("xds", host("198.51.100.11", "16", "160")) + "," +
		cluster("TCP [2001:db8:f::1]:80", host("2001:db8:1::11", "many", "3")) + `]}`})
	endpoints := map[dataplane.EndpointKey]dataplane.Counter{}
	open, err := b.endpointStats(t.Context(), endpoints)
	require.NoError(t, err)
	require.Equal(t, map[dataplane.EndpointKey]dataplane.Counter{
		{Pool: "a/v4", Endpoint: "198.51.100.11"}: {Connections: 90}, {Pool: "a/v4", Endpoint: "198.51.100.12"}: {Connections: 20},
		{Pool: "a/v6", Endpoint: "2001:db8:1::11"}: {Connections: 3}}, endpoints, "no endpoint that has left, and none of other clusters")
	key := frontend(model.TCP, "203.0.113.1", 80, "a/v4").FrontendKey
	require.EqualValues(t, 7, open[key], "connections to an endpoint that has left are still open")
	key.Port = 443
	require.EqualValues(t, 8, open[key])
}

func TestConnectionsOfFrontendsAreReadByTheirNames(t *testing.T) {
	b := withAdmin(t, map[string]string{"/stats": "tcp.TCP 203.0.113.1_80.downstream_cx_total: 7\nudp.UDP 203.0.113.1:80.downstream_sess_total: 9\n"})
	numbers, err := b.frontendStats(t.Context(), "(cx|sess)_total")
	require.NoError(t, err)
	require.EqualValues(t, 7, numbers[statName(frontend(model.TCP, "203.0.113.1", 80, "a/v4").FrontendKey)])
	require.EqualValues(t, 9, numbers[statName(frontend(model.UDP, "203.0.113.1", 80, "a/v4").FrontendKey)])
}

func TestAPageOfEnvoyThatCannotBeReadIsNamed(t *testing.T) {
	b := withAdmin(t, nil)
	_, err := b.endpointStats(t.Context(), nil)
	require.EqualError(t, err, "query Envoy's admin interface for /clusters?format=json: 503 Service Unavailable")
	_, err = b.Stats(t.Context())
	require.ErrorContains(t, err, "query Envoy's admin interface for /stats?filter=")
	b = withAdmin(t, map[string]string{"/clusters": "<html>"})
	_, err = b.endpointStats(t.Context(), nil)
	require.ErrorContains(t, err, "Envoy's clusters: ")
	b = &Backend{dir: supervisor.Dir(t.TempDir())}
	_, err = b.get(t.Context(), "/stats")
	require.ErrorContains(t, err, "query Envoy's admin interface: ")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestAFrontendIsServedOnceThereIsASocket(t *testing.T) {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := socket.Addr().(*net.TCPAddr).AddrPort()
	key := model.FrontendKey{VIP: at.Addr().Unmap(), Protocol: model.TCP, Port: at.Port()}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, awaitSockets(ctx, []model.FrontendKey{key}))
	cancel()
	missing := model.FrontendKey{VIP: netip.MustParseAddr("192.0.2.1"), Protocol: model.TCP, Port: 80}
	require.EqualError(t, awaitSockets(ctx, []model.FrontendKey{missing, key}), "Envoy does not listen for 1 frontends, the first is TCP 192.0.2.1:80")
	require.NoError(t, socket.Close())
	require.EqualError(t, awaitSockets(ctx, []model.FrontendKey{key}), "Envoy does not listen for 1 frontends, the first is "+key.String())
}
