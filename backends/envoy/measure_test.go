package envoy

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"kubelb.k8c.io/backends/envoy/supervisor"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// measuring skips measurements, which take minutes and check nothing: make bench-envoy runs them.
func measuring(t *testing.T) {
	t.Helper()
	if os.Getenv("KUBELB_MEASURE") == "" {
		t.Skip("a measurement: run 'make bench-envoy'")
	}
}

// many returns n frontends on 250 addresses, each with its own pool.
func many(n int) model.Snapshot {
	var s model.Snapshot
	for i := range n {
		id := fmt.Sprint("p", i)
		s.Pools = append(s.Pools, pool(id, 0, 1, 2))
		s.Frontends = append(s.Frontends, model.Frontend{FrontendKey: model.FrontendKey{VIP: lab.VIP(true, 1+i%250), Protocol: model.TCP, Port: uint16(1000 + i/250)},
			Tenant: "t", Pool: model.PoolID("t/" + id), TargetPort: 30080})
	}
	return s
}

// residentKB returns the resident memory of the process in kB.
func residentKB(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			require.NoError(t, err)
			return kb
		}
	}
	return 0
}

// It measures Envoy's memory for a frontend, without affinity and with it.
func TestMeasureMemoryOfAffinity(t *testing.T) {
	measuring(t)
	for network, protocol := range networks {
		var each []float64
		for _, timeout := range []time.Duration{0, time.Hour} {
			b := startPlugin(t)
			s := many(1000)
			for i := range s.Frontends {
				s.Frontends[i].Protocol, s.Frontends[i].AffinityTimeout = protocol, timeout
			}
			b.apply(t, s.Pools[:10], s.Frontends[:10]...)
			few := residentKB(t, envoyOf(t, b.state))
			b.apply(t, s.Pools[10:], s.Frontends[10:]...)
			each = append(each, float64(residentKB(t, envoyOf(t, b.state))-few)/990)
			require.NoError(t, b.plugin.Close(t.Context(), true))
		}
		t.Logf("%s: %.1f kB for each frontend, with affinity %.1f kB", network, each[0], each[1])
	}
}

func TestMeasureScale(t *testing.T) {
	measuring(t)
	b := startPlugin(t)
	b.serve(t, 30080)
	empty := 0
	for _, n := range []int{10, 1000, 5000} {
		s := many(n)
		begin := time.Now()
		b.apply(t, s.Pools, s.Frontends...)
		all := time.Since(begin)
		resident := residentKB(t, envoyOf(t, b.state))
		if empty == 0 {
			empty = resident
		}
		// One endpoint changes again and again: the time until Apply returns, and until new connections reach it.
		var applied, live []time.Duration
		for round := range 11 {
			endpoint := 3 - 3*(round%2)
			begin := time.Now()
			b.apply(t, []model.Pool{pool(fmt.Sprint("p", n/2), endpoint)})
			applied = append(applied, time.Since(begin))
			for {
				answer, err := b.A.Request("tcp", addrPort(s.Frontends[n/2]), lab.From{})
				require.NoError(t, err)
				if answer.Endpoint == lab.EndpointAddress(true, endpoint) {
					break
				}
			}
			live = append(live, time.Since(begin))
		}
		// A new frontend: the time from the change to the first byte.
		var first []time.Duration
		for i := range 11 {
			f := s.Frontends[0]
			f.Port = uint16(20000 + n + i)
			begin := time.Now()
			b.apply(t, nil, f)
			_, err := b.A.Request("tcp", addrPort(f), lab.From{})
			require.NoError(t, err)
			first = append(first, time.Since(begin))
		}
		t.Logf("%d frontends: all applied in %v; Envoy %d kB, %.1f kB a frontend above 10; an endpoint change applied in %v, met in %v; a new frontend's first byte after %v",
			n, all.Round(time.Millisecond), resident, float64(resident-empty)/float64(n), median(applied), median(live), median(first))
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// TestMeasureEndpoints measures what frontends with many endpoints each cost Envoy.
func TestMeasureEndpoints(t *testing.T) {
	measuring(t)
	const frontends = 100
	for _, n := range []int{3, 10, 11, 100, 250, 1000, 5000} {
		b := startPlugin(t)
		s := many(frontends)
		b.apply(t, s.Pools[:1], s.Frontends[0])
		empty := residentKB(t, envoyOf(t, b.state))
		p := model.Pool{ID: "t/p", Tenant: "t"}
		for i := range n {
			a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: 1})
		}
		for i := range s.Frontends {
			s.Frontends[i].Pool = p.ID
		}
		b.apply(t, []model.Pool{p}, s.Frontends...)
		resident := residentKB(t, envoyOf(t, b.state))
		t.Logf("%d endpoints in each of %d frontends: Envoy %d kB, %.1f kB a frontend", n, frontends, resident, float64(resident-empty)/frontends)
		require.NoError(t, b.plugin.Close(t.Context(), true))
	}
}

func TestMeasureUnderLoad(t *testing.T) {
	measuring(t)
	b := startPlugin(t)
	b.serve(t, 30080)
	tcp, udp := web(model.TCP, 80), web(model.UDP, 80)
	b.apply(t, []model.Pool{pool("p", 0, 1, 2, 3)}, tcp, udp)
	copied := filepath.Join(t.TempDir(), "envoy")
	copyFile(t, b.options[optionEnvoy], copied)
	for _, event := range []struct {
		name   string
		happen func()
	}{
		{"plugin killed and started again", func() {
			require.NoError(t, b.plugin.Kill())
			b.start(t)
		}},
		{"1,000 changes of other frontends and pools", func() {
			for i := range 1000 {
				other := web(model.TCP, uint16(1000+i%50))
				other.Pool = "t/other"
				b.apply(t, []model.Pool{pool("other", i%4)}, other)
			}
		}},
		{"100 changes of its own pool", func() {
			for i := range 100 {
				b.apply(t, []model.Pool{pool("p", i%4, (i+1)%4)})
			}
		}},
		{"Envoy replaced by another binary", func() {
			b.options[optionEnvoy] = copied
			before := envoyOf(t, b.state)
			b.plugin.Stop()
			b.start(t)
			dir := supervisor.Dir(filepath.Join(b.state, "envoy"))
			require.Eventually(t, func() bool { return envoyOf(t, b.state) != before && served(dir) == 1 }, 20*time.Second, 20*time.Millisecond)
			time.Sleep(time.Second)
		}},
		{"Envoy killed", func() {
			require.NoError(t, syscall.Kill(envoyOf(t, b.state), syscall.SIGKILL))
			time.Sleep(2 * time.Second)
		}},
	} {
		var streams []*lab.Stream
		for range 20 {
			s, err := b.A.Stream(addrPort(tcp), lab.From{})
			require.NoError(t, err)
			streams = append(streams, s)
		}
		newTCP, newUDP := startLoad(b, "tcp", addrPort(tcp)), startLoad(b, "udp", addrPort(udp))
		time.Sleep(200 * time.Millisecond)
		event.happen()
		time.Sleep(200 * time.Millisecond)
		newTCP.end()
		newUDP.end()
		lost := 0
		for _, s := range streams {
			if s.Alive() != nil {
				lost++
			}
			s.Close()
		}
		t.Logf("%s: %d of %d new connections failed, the slowest took %v; %d of %d established ones lost; %d of %d UDP flows failed, %d datagrams lost, the slowest took %v",
			event.name, newTCP.failed, newTCP.made, newTCP.slowest.Round(time.Millisecond), lost, len(streams), newUDP.failed, newUDP.made, newUDP.lost, newUDP.slowest.Round(time.Millisecond))
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2].Round(100 * time.Microsecond)
}

// It measures an alternative design: one listener for all frontends, whose filter chains match the destination. Packets would be
// delivered by TPROXY. UDP has no filter chains, so it is for TCP only.
func TestMeasureOneListenerForAll(t *testing.T) {
	measuring(t)
	envoy, err := filepath.EvalSymlinks("../../bin/envoy")
	require.NoError(t, err)
	state, err := os.MkdirTemp("", "klenvoy")
	require.NoError(t, err)
	defer os.RemoveAll(state)
	dir := supervisor.Dir(state)
	binaries := t.TempDir()
	output, err := exec.Command("go", "build", "-o", binaries+"/", "./cmd/kubelb-envoy").CombinedOutput()
	require.NoError(t, err, string(output))
	x := newXDS()
	require.NoError(t, x.serve(dir.XDS(), func(*grpc.Server) {}))
	defer x.close()
	text, err := bootstrapFor(dir)
	require.NoError(t, err)
	require.NoError(t, dir.Want(supervisor.Wanted{Envoy: envoy, Bootstrap: text, DrainSeconds: 600}, filepath.Join(binaries, "kubelb-envoy")))
	defer func() { require.NoError(t, dir.Stop(context.Background())) }()
	all := &listener.Listener{Name: "all", Address: socketAddress(core.SocketAddress_TCP, netip.MustParseAddr("127.0.0.1"), 15006), UseOriginalDst: wrapperspb.Bool(false)}
	grow := func(from, to int) time.Duration {
		s := many(to)
		byKind := map[string]map[string]types.Resource{resource.ClusterType: {}, resource.EndpointType: {}, resource.ListenerType: {"all": all}}
		all = proto.Clone(all).(*listener.Listener)
		byKind[resource.ListenerType]["all"] = all
		for i := from; i < to; i++ {
			f := s.Frontends[i]
			name := f.FrontendKey.String()
			r := render(f, s.Pools[i], timeouts{}, nil)
			byKind[resource.ClusterType][name], byKind[resource.EndpointType][r.assignment.ClusterName] = r.cluster, r.assignment
			all.FilterChains = append(all.FilterChains, &listener.FilterChain{Name: name, Filters: r.listener.FilterChains[0].Filters, FilterChainMatch: &listener.FilterChainMatch{
				DestinationPort: number(uint32(f.Port)), PrefixRanges: []*core.CidrRange{{AddressPrefix: f.VIP.String(), PrefixLen: number(32)}}}})
		}
		begin := time.Now()
		var all []named
		for _, kind := range kinds {
			want, err := x.update(kind, byKind[kind], nil)
			require.NoError(t, err)
			all = append(all, want...)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		refused, err := x.await(ctx, all)
		require.NoError(t, err)
		require.Empty(t, refused)
		return time.Since(begin)
	}
	grow(0, 10)
	empty, served := residentKB(t, envoyOf(t, state)), 10
	for _, n := range []int{10, 1000, 5000} {
		took := grow(served, n)
		served = n
		resident := residentKB(t, envoyOf(t, state))
		var one []time.Duration
		for range 11 {
			one = append(one, grow(served, served+1))
			served++
		}
		t.Logf("%d filter chains: all taken in %v; Envoy %d kB, %.1f kB a frontend above 10; one more is taken in %v, then %d kB", n, took.Round(time.Millisecond), resident, float64(resident-empty)/float64(n), median(one), residentKB(t, envoyOf(t, state)))
	}
}
