package driver

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

func TestEachCallOfAPluginHasADeadlineAndIsNamed(t *testing.T) {
	for _, name := range []string{"Preflight", "Configure", "Applied", "Apply"} {
		t.Run(name, func(t *testing.T) {
			h := newWithPlugin(t)
			h.Add(drivertest.Module, drivertest.Sysctl)
			short := 300 * time.Millisecond
			h.runner.limits.preflight, h.runner.limits.configure, h.runner.limits.applied, h.runner.limits.apply = short, short, short, short
			h.Add(drivertest.Hang(name))
			began := time.Now()
			h.retryAndSync()
			require.Less(t, time.Since(began), 30*time.Second)
			if name == "Preflight" {
				h.retryAndSync().requireWorking() // it works without a preflight
				return
			}
			require.ErrorContains(t, h.Problem(), "the plugin has not answered "+name)
			require.ErrorContains(t, h.Problem(), "within 300ms")
			require.GreaterOrEqual(t, time.Until(h.RetryAt()), hangBackoff/2, "it would get the same work at once")
			require.False(t, h.Running(), "its process is killed")
			h.Remove(drivertest.Hang(name))
			h.runner.limits = defaultLimits()
			h.retryAndSync().requireWorking()
		})
	}
}

func TestAPluginThatIsStoppedBySIGSTOPIsKilled(t *testing.T) {
	h := newWithPlugin(t)
	h.Add(drivertest.Module)
	h.retryAndSync().requireWorking()
	pid := h.Process().(*plugin.Process).Pid()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	began := time.Now()
	h.Driver.Stop()
	require.Less(t, time.Since(began), 20*time.Second)
	require.Eventually(t, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }, 10*time.Second, 10*time.Millisecond)
}

// Who writes a plugin reads the deadlines there.
func TestTheDocumentOfPluginsHasTheDeadlines(t *testing.T) {
	text, err := os.ReadFile("../../../docs/plugin.md")
	require.NoError(t, err)
	l := defaultLimits()
	for _, row := range []string{
		fmt.Sprintf("| `Describe` | %s |", l.describe), fmt.Sprintf("| `Preflight` | %s |", preflightLimit), fmt.Sprintf("| `Configure` | %s |", l.configure),
		fmt.Sprintf("| `Applied` | %s |", l.applied),
		fmt.Sprintf("| `Apply` | %s, and %s more for each record, endpoint and source range, %s at most |", l.apply, l.applyPerRecord, l.applyMax),
		fmt.Sprintf("| start, `Configure` and `Close(purge)` of the former dataplane, after a change to another one | %s for all | all of it again every %.0f s |", purgeLimit, retryPurge.Seconds()),
	} {
		require.Contains(t, string(text), row)
	}
}

func TestALargeChangeMayTakeLonger(t *testing.T) {
	l := defaultLimits()
	require.Equal(t, time.Minute, l.forChange(model.Delta{}))
	fleet := model.Delta{UpsertFrontends: make([]model.Frontend, 10_000), UpsertPools: make([]model.Pool, 10_000)}
	require.Greater(t, l.forChange(fleet), 4*time.Minute)
	fleet.UpsertPools[0].Endpoints = make([]model.Endpoint, 1_000_000)
	require.Equal(t, l.applyMax, l.forChange(fleet))
}
