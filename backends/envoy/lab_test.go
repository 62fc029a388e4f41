package envoy

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// startPlugin builds the binaries and starts the plugin in a lab's gateway, with a state directory.
func startPlugin(t *testing.T) (*lab.Lab, cases.Process, string) {
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
	l, err := lab.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	p, err := conformance.Plugin(filepath.Join(dir, "kubelb-backend-envoy")).Start(t.Context(), l.Gateways[0].Namespace, os.Stderr)
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	state, err := os.MkdirTemp("", "klenvoy")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(state) })
	require.NoError(t, p.Configure(t.Context(), dataplane.Config{Node: "gateway", StateDir: state, Options: map[string]string{optionEnvoy: envoy}}))
	return l, p, state
}

func addrPort(f model.Frontend) netip.AddrPort { return netip.AddrPortFrom(f.VIP, f.Port) }

func TestAPortThatSomebodyElseHasFailsThatFrontendOnlyWithEnvoysReason(t *testing.T) {
	l, p, _ := startPlugin(t)
	server, err := l.Nodes[0].Serve(30080)
	require.NoError(t, err)
	defer server.Close()
	taken := l.Gateways[0]
	var other net.Listener
	require.NoError(t, taken.Do(func() error {
		// Without SO_REUSEPORT, which Envoy's listeners have, nobody else can have the port of any address.
		other, err = net.Listen("tcp", ":81")
		return err
	}))
	defer other.Close()
	snapshot := model.Snapshot{
		Pools: []model.Pool{{ID: "t/p", Tenant: "t", Endpoints: []model.Endpoint{{ID: "0", Address: lab.EndpointAddress(true, 0), Weight: 1}}}},
		Frontends: []model.Frontend{
			{FrontendKey: model.FrontendKey{VIP: lab.VIP(true, 1), Protocol: model.TCP, Port: 80}, Tenant: "t", Pool: "t/p", TargetPort: 30080},
			{FrontendKey: model.FrontendKey{VIP: lab.VIP(true, 1), Protocol: model.TCP, Port: 81}, Tenant: "t", Pool: "t/p", TargetPort: 30080},
		},
	}
	held, err := p.Applied(t.Context())
	require.NoError(t, err)
	result, err := p.Apply(t.Context(), dataplane.Change{Base: held.Generation, Next: dataplane.Generation{Epoch: "test", Number: 1}, Delta: model.Difference(held.Digests, snapshot)})
	require.NoError(t, err)
	require.Len(t, result.Failed, 1)
	require.Equal(t, snapshot.Frontends[1].FrontendKey, result.Failed[0].Frontend)
	require.Contains(t, result.Failed[0].Message, "Address already in use")
	_, err = l.A.Ask("tcp", addrPort(snapshot.Frontends[0]), lab.From{})
	require.NoError(t, err, "the other frontend is served")
	require.True(t, l.A.Refused("tcp", addrPort(snapshot.Frontends[1])).Outright, "nobody reaches the other process through the VIP")
	held, err = p.Applied(t.Context())
	require.NoError(t, err)
	require.Len(t, held.Frontends, 1)
	require.NoError(t, p.Close(t.Context(), true))
}

func TestAnEnvoyThatIsKilledIsStartedAgainAndServesTheSame(t *testing.T) {
	l, p, state := startPlugin(t)
	server, err := l.Nodes[0].Serve(30080)
	require.NoError(t, err)
	defer server.Close()
	f := model.Frontend{FrontendKey: model.FrontendKey{VIP: lab.VIP(true, 1), Protocol: model.TCP, Port: 80}, Tenant: "t", Pool: "t/p", TargetPort: 30080}
	snapshot := model.Snapshot{Frontends: []model.Frontend{f},
		Pools: []model.Pool{{ID: "t/p", Tenant: "t", Endpoints: []model.Endpoint{{ID: "0", Address: lab.EndpointAddress(true, 0), Weight: 1}}}}}
	_, err = p.Apply(t.Context(), dataplane.Change{Next: dataplane.Generation{Epoch: "test", Number: 1}, Delta: model.Difference(model.NewDigests(), snapshot)})
	require.NoError(t, err)
	_, err = l.A.Ask("tcp", addrPort(f), lab.From{})
	require.NoError(t, err)
	killEnvoy(t, state)
	require.Eventually(t, func() bool {
		_, err := l.A.Ask("tcp", addrPort(f), lab.From{})
		return err == nil
	}, 3*time.Second, 20*time.Millisecond)
	require.NoError(t, p.Close(t.Context(), true))
}

// killEnvoy kills the Envoy whose bootstrap lies in the state directory.
func killEnvoy(t *testing.T, state string) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), "\x00--config-path\x00"+state) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		return
	}
	require.Fail(t, "no Envoy runs")
}
