package envoy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/envoy/supervisor"
	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// startPlugin builds the binaries and starts the plugin in a lab's gateway.
func startPlugin(t *testing.T) *bench {
	t.Helper()
	b := prepare(t)
	b.start(t)
	return b
}

// prepare builds the binaries for a plugin in a lab's gateway, and does not start it.
func prepare(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	envoy, err := filepath.EvalSymlinks("../../bin/envoy")
	if err != nil {
		t.Skip("no Envoy: run 'make deps'")
	}
	dir := t.TempDir()
	output, err := exec.Command("go", "build", "-o", dir+"/", "./cmd/...").CombinedOutput()
	require.NoError(t, err, string(output))
	l, err := lab.New(1)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	state, err := os.MkdirTemp("", "klenvoy")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(state) })
	return &bench{Lab: l, state: state, binary: conformance.Plugin(filepath.Join(dir, "kubelb-backend-envoy")), options: map[string]string{optionEnvoy: envoy, optionCloseTime: "1s"}}
}

// restrict runs the plugin with only these capabilities, as a container runtime does.
func (b *bench) restrict(t *testing.T, capabilities ...string) {
	t.Helper()
	caps := "-all,+" + strings.Join(capabilities, ",+")
	script := filepath.Join(t.TempDir(), "restricted")
	require.NoError(t, os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\nexec setpriv --bounding-set=%[1]s --inh-caps=%[1]s %[2]s\n", caps, b.binary), 0o755))
	b.binary = conformance.Plugin(script)
}

// bench is a lab with a plugin in its gateway.
type bench struct {
	*lab.Lab
	plugin  cases.Process
	state   string
	binary  conformance.Plugin
	options map[string]string
	at      dataplane.Generation
}

// start starts the plugin, as a new manager does.
func (b *bench) start(t *testing.T) {
	t.Helper()
	var err error
	b.plugin, err = b.binary.Start(t.Context(), b.Gateways[0].Namespace, os.Stderr)
	require.NoError(t, err)
	t.Cleanup(b.plugin.Stop)
	b.at = dataplane.Generation{}
	require.NoError(t, b.plugin.Configure(t.Context(), dataplane.Config{StateDir: b.state, Options: b.options}))
}

// try applies records and returns those that failed.
func (b *bench) try(t *testing.T, pools []model.Pool, frontends ...model.Frontend) []dataplane.RecordError {
	t.Helper()
	change := dataplane.Change{Base: b.at, Next: dataplane.Generation{Epoch: "test", Number: b.at.Number + 1}, Delta: model.Delta{UpsertPools: pools, UpsertFrontends: frontends}}
	result, err := b.plugin.Apply(t.Context(), change)
	require.NoError(t, err)
	b.at = result.Generation
	return result.Failed
}

// apply applies records, none of which may fail.
func (b *bench) apply(t *testing.T, pools []model.Pool, frontends ...model.Frontend) {
	t.Helper()
	require.Empty(t, b.try(t, pools, frontends...))
}

// serve makes all nodes answer on the port.
func (b *bench) serve(t *testing.T, port uint16) {
	t.Helper()
	for i := range b.Nodes {
		server, err := b.Nodes[i].Serve(port)
		require.NoError(t, err)
		t.Cleanup(func() { server.Close() })
	}
}

// web returns a frontend of pool t/p.
func web(protocol model.Protocol, port uint16) model.Frontend {
	return model.Frontend{FrontendKey: model.FrontendKey{VIP: lab.VIP(true, 1), Protocol: protocol, Port: port}, Tenant: "t", Pool: "t/p", TargetPort: 30080}
}

// pool returns a pool of tenant t with these endpoints, by number.
func pool(id string, endpoints ...int) model.Pool {
	p := model.Pool{ID: model.PoolID("t/" + id), Tenant: "t"}
	for _, i := range endpoints {
		a := lab.EndpointAddress(true, i)
		p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: 1})
	}
	return p
}

func addrPort(f model.Frontend) netip.AddrPort { return netip.AddrPortFrom(f.VIP, f.Port) }

func TestAPortInUseFailsItsFrontendOnlyWithEnvoysReason(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	var other net.Listener
	require.NoError(t, b.Gateways[0].Do(func() (err error) {
		// Without SO_REUSEPORT, which Envoy's listeners have, no other process can have the port at any address.
		other, err = net.Listen("tcp", ":81")
		return err
	}))
	defer other.Close()
	failed := b.try(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80), web(model.TCP, 81))
	require.Len(t, failed, 1)
	require.Equal(t, web(model.TCP, 81).FrontendKey, failed[0].Frontend)
	require.Contains(t, failed[0].Message, "Address already in use")
	_, err := b.A.Request("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err, "the other frontend is served")
	require.True(t, b.A.Refused("tcp", addrPort(web(model.TCP, 81))).Outright, "the other process is not reachable by the VIP")
	held, err := b.plugin.Applied(t.Context())
	require.NoError(t, err)
	require.Len(t, held.Frontends, 1)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestAKilledEnvoyIsStartedAgainAndServesTheSame(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	at := addrPort(web(model.TCP, 80))
	b.apply(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80))
	_, err := b.A.Request("tcp", at, lab.From{})
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(envoyOf(t, b.state), syscall.SIGKILL))
	require.Eventually(t, func() bool {
		_, err := b.A.Request("tcp", at, lab.From{})
		return err == nil
	}, 30*time.Second, 20*time.Millisecond)
	// Apply waits until the new Envoy has accepted the change.
	b.apply(t, nil, web(model.TCP, 81))
	_, err = b.A.Request("tcp", addrPort(web(model.TCP, 81)), lab.From{})
	require.NoError(t, err)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// load opens new flows until it is stopped, and counts failures.
type load struct {
	made, failed, lost int
	first              error
	slowest            time.Duration
	stop, done         chan struct{}
}

func startLoad(b *bench, network string, to netip.AddrPort) *load {
	l := &load{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			l.made++
			begin := time.Now()
			err := l.flow(b, network, to)
			l.slowest = max(l.slowest, time.Since(begin))
			if err != nil {
				l.failed++
				if l.first == nil {
					l.first = err
				}
			}
		}
	}()
	return l
}

// flow sends a request on a new flow. A datagram may be lost, so it is sent again on the same flow.
func (l *load) flow(b *bench, network string, to netip.AddrPort) error {
	if network == "tcp" {
		_, err := b.B.Request(network, to, lab.From{})
		return err
	}
	c, err := b.B.Dial(network, to, lab.From{})
	if err != nil {
		return err
	}
	defer c.Close()
	if !lab.Unanswered(c, 1) {
		return nil
	}
	l.lost++
	_, err = lab.RequestAddresses(c, 1)
	return err
}

func (l *load) end() *load {
	close(l.stop)
	<-l.done
	return l
}

func TestEnvoyIsReplacedWithoutRefusingAConnection(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	tcp, udp := web(model.TCP, 80), web(model.UDP, 80)
	b.apply(t, []model.Pool{pool("p", 0, 1)}, tcp, udp)
	var streams []*lab.Stream
	for range 10 {
		s, err := b.A.Stream(addrPort(tcp), lab.From{})
		require.NoError(t, err)
		defer s.Close()
		streams = append(streams, s)
	}
	before := envoyOf(t, b.state)
	newTCP, newUDP := startLoad(b, "tcp", addrPort(tcp)), startLoad(b, "udp", addrPort(udp))
	time.Sleep(200 * time.Millisecond)
	// An upgrade: the plugin is started again with another binary.
	binary := filepath.Join(t.TempDir(), "envoy")
	copyFile(t, b.options[optionEnvoy], binary)
	b.options[optionEnvoy] = binary
	b.plugin.Stop()
	b.start(t)
	dir := supervisor.Dir(filepath.Join(b.state, "envoy"))
	require.Eventually(t, func() bool {
		running, err := dir.Running()
		require.NoError(t, err)
		require.Empty(t, running.Problem)
		return envoyOf(t, b.state) != before && running.Launch == 2 && served(dir) == 1
	}, 10*time.Second, 20*time.Millisecond)
	time.Sleep(500 * time.Millisecond)
	b.apply(t, []model.Pool{pool("p", 2)})
	time.Sleep(200 * time.Millisecond)
	for _, l := range []*load{newTCP.end(), newUDP.end()} {
		t.Logf("%d new flows, %d failed (%v), %d datagrams lost", l.made, l.failed, l.first, l.lost)
		require.Zero(t, l.failed, "%v", l.first)
	}
	for _, s := range streams {
		require.NoError(t, s.Alive(), "an existing connection")
	}
	answer, err := b.A.Request("tcp", addrPort(tcp), lab.From{})
	require.NoError(t, err)
	require.Equal(t, lab.EndpointAddress(true, 2), answer.Endpoint, "the new one gets the changes")
	b.apply(t, nil, web(model.TCP, 81))
	_, err = b.A.Request("tcp", addrPort(web(model.TCP, 81)), lab.From{})
	require.NoError(t, err)
	// The new one ends while the old one still has connections.
	require.NoError(t, syscall.Kill(envoyOf(t, b.state), syscall.SIGKILL))
	for _, network := range []string{"tcp", "udp"} {
		// The old one takes a moment to end, and datagrams that it gets are lost.
		require.Eventually(t, func() bool {
			_, err := b.A.RequestTimes(30, network, addrPort(tcp))
			return err == nil
		}, 15*time.Second, 10*time.Millisecond, network)
	}
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestFrontendsAndEndpointsHaveCountersForTCPAndUDP(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	tcp, udp := web(model.TCP, 80), web(model.UDP, 80)
	b.apply(t, []model.Pool{pool("p", 0, 1, 2, 3)}, tcp, udp)
	seen := map[string]uint64{}
	for network, n := range map[string]uint16{"tcp": 40, "udp": 60} {
		for i := range n {
			// The kernel sometimes chooses a port twice, and then two datagrams are of one flow.
			answer, err := b.A.Request(network, addrPort(tcp), lab.From{Port: 24000 + i})
			require.NoError(t, err)
			seen[answer.Endpoint.String()]++
		}
	}
	stats, err := b.plugin.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 40, stats.Frontends[tcp.FrontendKey].Connections)
	require.EqualValues(t, 60, stats.Frontends[udp.FrontendKey].Connections)
	for _, e := range pool("p", 0, 1, 2, 3).Endpoints {
		counter := stats.Endpoints[dataplane.EndpointKey{Pool: "t/p", Endpoint: e.ID}]
		require.Equal(t, seen[e.Address.String()], counter.Connections, e.ID)
	}
	stays, err := b.A.Stream(addrPort(tcp), lab.From{})
	require.NoError(t, err)
	defer stays.Close()
	stats, err = b.plugin.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, stats.Proxied, "the others have ended")
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestAnEnvoyThatCannotStartReplacesNothing(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	at := addrPort(web(model.TCP, 80))
	b.apply(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80))
	before := envoyOf(t, b.state)
	b.options[optionEnvoy] = script(t, "envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.41.0/Clean/RELEASE/BoringSSL")
	newTCP := startLoad(b, "tcp", at)
	b.plugin.Stop()
	b.start(t)
	faults := make(chan string, 100)
	watch, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { _ = b.plugin.Watch(watch, func(f dataplane.Fault) { faults <- f.Message }) }()
	select {
	case fault := <-faults:
		require.Contains(t, fault, "the new Envoy ended before it served")
		require.Contains(t, fault, "exit status 3")
	case <-time.After(10 * time.Second):
		require.Fail(t, "no fault is reported")
	}
	b.apply(t, nil, web(model.TCP, 81))
	_, err := b.A.Request("tcp", addrPort(web(model.TCP, 81)), lab.From{})
	require.NoError(t, err, "the old one accepts changes")
	require.Equal(t, before, envoyOf(t, b.state))
	l := newTCP.end()
	require.Zero(t, l.failed, "%v", l.first)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestAKilledSupervisorIsStartedAgain(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	at := addrPort(web(model.TCP, 80))
	b.apply(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80))
	watch, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { _ = b.plugin.Watch(watch, func(dataplane.Fault) {}) }()
	pid, err := supervisor.Dir(filepath.Join(b.state, "envoy")).Supervisor()
	require.NoError(t, err)
	require.NotZero(t, pid)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	require.Eventually(t, func() bool {
		now, err := supervisor.Dir(filepath.Join(b.state, "envoy")).Supervisor()
		require.NoError(t, err)
		if now == 0 || now == pid {
			return false
		}
		_, err = b.A.Request("tcp", at, lab.From{})
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

func TestAnAddressOfAnUnusableFamilyFailsItsFrontendOnly(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	require.NoError(t, b.plugin.Close(t.Context(), true))
	b.plugin.Stop()
	require.NoError(t, b.Gateways[0].Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o644)
	}))
	b.start(t)
	six := web(model.TCP, 80)
	six.VIP, six.Pool = lab.VIP(false, 1), "t/six"
	address := lab.EndpointAddress(false, 0)
	failed := b.try(t, []model.Pool{pool("p", 0), {ID: "t/six", Tenant: "t", Endpoints: []model.Endpoint{{ID: "0", Address: address, Weight: 1}}}}, web(model.TCP, 80), six)
	require.Len(t, failed, 1)
	require.Equal(t, six.FrontendKey, failed[0].Frontend)
	require.Contains(t, failed[0].Message, "IPv6 cannot be used on this gateway")
	_, err := b.A.Request("tcp", addrPort(web(model.TCP, 80)), lab.From{})
	require.NoError(t, err, "the other frontend is served")
	require.NoError(t, b.plugin.Close(t.Context(), true))
}

// served returns the restart epoch of the Envoy at the admin socket.
func served(d supervisor.Dir) int {
	response, err := d.Client().Get("http://envoy/server_info")
	if err != nil {
		return -1
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	_, rest, _ := strings.Cut(string(text), `"restart_epoch": `)
	epoch, _, _ := strings.Cut(rest, ",")
	n, err := strconv.Atoi(epoch)
	if err != nil {
		return -1
	}
	return n
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, text, 0o755))
}

// envoyOf returns the process id of the last Envoy that was started in the state directory.
func envoyOf(t *testing.T, state string) int {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	bootstrap := regexp.MustCompile("\x00" + regexp.QuoteMeta(state) + `/(?:envoy/)?bootstrap-(\d+)\.yaml` + "\x00")
	pid, last := 0, 0
	for _, path := range found {
		text, err := os.ReadFile(path)
		m := bootstrap.FindSubmatch(text)
		if err != nil || m == nil {
			continue
		}
		launch, err := strconv.Atoi(string(m[1]))
		require.NoError(t, err)
		if launch > last {
			last = launch
			pid, err = strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
		}
	}
	require.NotZero(t, pid, "no Envoy runs")
	return pid
}

func TestEnvoyLeavesNoSharedMemory(t *testing.T) {
	b := startPlugin(t)
	b.serve(t, 30080)
	b.apply(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80))
	shared := func() string {
		base, err := os.ReadFile(filepath.Join(b.state, "envoy", "base-id"))
		require.NoError(t, err)
		return "/dev/shm/envoy_shared_memory_" + strings.TrimSpace(string(base)) + "0"
	}
	exists := func(path string) bool { // the gateway has a /dev/shm of its own
		return b.Gateways[0].Do(func() error {
			_, err := os.Stat(path)
			return err
		}) == nil
	}
	first := shared()
	require.True(t, exists(first))
	require.NoError(t, syscall.Kill(envoyOf(t, b.state), syscall.SIGKILL))
	require.Eventually(t, func() bool {
		_, err := b.A.Request("tcp", addrPort(web(model.TCP, 80)), lab.From{})
		return err == nil
	}, 5*time.Second, 20*time.Millisecond)
	require.False(t, exists(first), "the shared memory of the killed Envoy")
	second := shared()
	require.NotEqual(t, first, second)
	require.True(t, exists(second))
	require.NoError(t, b.plugin.Close(t.Context(), true))
	require.False(t, exists(second))
}

func TestEnvoyMayOpenAsManyFilesAsTheHostAllows(t *testing.T) {
	var usual syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &usual))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 512, Max: usual.Max}))
	t.Cleanup(func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &usual)) })
	b := startPlugin(t)
	b.apply(t, []model.Pool{pool("p", 0)}, web(model.TCP, 80))
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", envoyOf(t, b.state)))
	require.NoError(t, err)
	most, err := os.ReadFile("/proc/sys/fs/nr_open")
	require.NoError(t, err)
	// Only with CAP_SYS_RESOURCE the limit may be higher than that of this process.
	require.Regexp(t, fmt.Sprintf("Max open files +(%s|%d) ", strings.TrimSpace(string(most)), usual.Max), string(limits))
}
