package envoy

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// handWritten is an Envoy configuration for one Service, as people write it.
const handWritten = `static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: %[1]s, port_value: 80}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: web, cluster: web}
  clusters:
  - name: web
    connect_timeout: 1s
    type: STATIC
    load_assignment:
      cluster_name: web
      endpoints: [{lb_endpoints: [
        {endpoint: {address: {socket_address: {address: %[2]s, port_value: 30080}}}},
        {endpoint: {address: {socket_address: {address: %[3]s, port_value: 30080}}}},
        {endpoint: {address: {socket_address: {address: %[4]s, port_value: 30080}}}},
        {endpoint: {address: {socket_address: {address: %[5]s, port_value: 30080}}}}]}]
`

// It loads in turns this dataplane, and a plain Envoy on the other gateway, with the VIP as its own address and no rules.
func TestMeasureThroughput(t *testing.T) {
	measuring(t)
	b := startPlugin(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0, 1, 2, 3)}, web(model.TCP, 80))
	ours, theirs := addrPort(web(model.TCP, 80)), netip.AddrPortFrom(lab.VIP(true, 250), 80)
	startByHand(t, b, theirs.Addr())
	for _, kind := range []struct {
		name string
		work func(*bench, netip.AddrPort, time.Duration) int64
	}{{"connections", connections}, {"requests", requests}} {
		compare(t, b, kind.name, "with an Envoy and a file written by hand", kind.work, [2]netip.AddrPort{ours, theirs})
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// It measures new flows to a frontend with affinity and to one without, with one pool and one client address.
func TestMeasureAffinity(t *testing.T) {
	measuring(t)
	b := startPlugin(t)
	b.serve(t, 30080)
	for network, protocol := range networks {
		plain, sticky := web(protocol, 80), web(protocol, 81)
		sticky.AffinityTimeout = time.Hour
		b.apply(t, []model.Pool{pool("p", 0, 1, 2, 3)}, plain, sticky)
		compare(t, b, network+" flows", "without affinity", flows(network), [2]netip.AddrPort{addrPort(sticky), addrPort(plain)})
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// compare runs work against two addresses in turns, and logs the rates per second and their ratio.
func compare(t *testing.T, b *bench, what, second string, work func(*bench, netip.AddrPort, time.Duration) int64, to [2]netip.AddrPort) {
	t.Helper()
	var ratios []float64
	var sums [2]float64
	var last [2]float64
	for round := range 200 {
		const turn = 250 * time.Millisecond
		// The order alternates.
		for i := range 2 {
			which := (round + i) % 2
			last[which] = float64(work(b, to[which], turn)) / turn.Seconds()
		}
		ratios = append(ratios, last[0]/last[1])
		sums[0] += last[0]
		sums[1] += last[1]
	}
	slices.Sort(ratios)
	t.Logf("%s a second: %.0f, %s %.0f: %.3f; the ratio of a turn has the median %.3f (%.3f to %.3f)", what,
		sums[0]/float64(len(ratios)), second, sums[1]/float64(len(ratios)), sums[0]/sums[1], ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
}

func startByHand(t *testing.T, b *bench, vip netip.Addr) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, handWritten, vip, lab.EndpointAddress(true, 0), lab.EndpointAddress(true, 1), lab.EndpointAddress(true, 2), lab.EndpointAddress(true, 3)), 0o644))
	ip := func(h *lab.Host, args ...string) {
		require.NoError(t, h.Do(func() error {
			output, err := exec.Command("ip", args...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ip %v: %w: %s", args, err, output)
			}
			return nil
		}))
	}
	ip(b.Gateways[1], "address", "add", vip.String()+"/32", "dev", "lo")
	ip(b.A, "route", "add", vip.String()+"/32", "via", "192.0.2.2")
	envoy := exec.Command(b.options[optionEnvoy], "--config-path", file, "--use-dynamic-base-id", "--log-level", "error")
	envoy.Stderr = os.Stderr
	// Envoy ends with the thread that started it, so that thread waits for its end.
	started := make(chan error)
	go func() {
		_ = b.Gateways[1].Do(func() error {
			err := envoy.Start()
			started <- err
			if err == nil {
				_ = envoy.Wait()
			}
			return nil
		})
	}()
	require.NoError(t, <-started)
	t.Cleanup(func() { _ = envoy.Process.Signal(syscall.SIGTERM) })
	require.Eventually(t, func() bool {
		_, err := b.A.Request("tcp", netip.AddrPortFrom(vip, 80), lab.From{})
		return err == nil
	}, 5*time.Second, 20*time.Millisecond)
}

// workers is the number of concurrent goroutines that send traffic.
const workers = 8

// connections counts connections, each with one request and its answer.
func connections(b *bench, to netip.AddrPort, long time.Duration) int64 {
	return flows("tcp")(b, to, long)
}

// flows counts new flows, each with one request and its answer.
func flows(network string) func(*bench, netip.AddrPort, time.Duration) int64 {
	return func(b *bench, to netip.AddrPort, long time.Duration) int64 {
		return work(long, func(until time.Time) (n int64) {
			for time.Now().Before(until) {
				answers, err := b.A.RequestTimes(20, network, to)
				if err != nil {
					return n
				}
				n += int64(len(answers))
			}
			return n
		})
	}
}

// requests counts lines that are answered on persistent connections.
func requests(b *bench, to netip.AddrPort, long time.Duration) int64 {
	return work(long, func(until time.Time) (n int64) {
		s, err := b.A.Stream(to, lab.From{})
		if err != nil {
			return 0
		}
		defer s.Close()
		for time.Now().Before(until) && s.Alive() == nil {
			n++
		}
		return n
	})
}

func work(long time.Duration, client func(time.Time) int64) int64 {
	var sum atomic.Int64
	var all sync.WaitGroup
	until := time.Now().Add(long)
	for range workers {
		all.Go(func() { sum.Add(client(until)) })
	}
	all.Wait()
	return sum.Load()
}
