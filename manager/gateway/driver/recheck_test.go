package driver

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

// missingCheck returns a check of something that is missing, and what that costs.
func missingCheck(costs string) dataplane.Check {
	return dataplane.Check{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing, Found: "not loaded", Costs: costs}
}

// ageChecks sets the time since the last preflight.
func (h *testDriver) ageChecks(d time.Duration) { h.runner.result.lastRun = time.Now().Add(-d) }

// recheck syncs, and runs the preflight that has to be due now.
func (h *testDriver) recheck() *testDriver {
	h.t.Helper()
	h.retryAndSync()
	ctx, end := context.WithCancel(h.t.Context())
	ended, answers := make(chan error), make(chan func(), 1)
	go func() {
		ended <- h.recheckLoop(ctx, func(_ context.Context, answer func()) { answers <- answer })
	}()
	select {
	case answer := <-answers:
		answer()
	case <-time.After(10 * time.Second):
		require.Fail(h.t, "there was no preflight")
	}
	end()
	require.NoError(h.t, <-ended)
	return h.retryAndSync()
}

func TestMissingThingsAreReportedWhileThePreflightFails(t *testing.T) {
	h := newTestDriver(t)
	h.Add(drivertest.Module)
	require.NotEmpty(t, h.retryAndSync().lacking(dataplane.GroupSysctls))
	h.Add(drivertest.PreflightFails)
	h.ageChecks(slowRecheckInterval)
	require.NotEmpty(t, h.recheck().lacking(dataplane.GroupSysctls), "nobody has fixed it")
	h.Driver.Stop()
	require.NotEmpty(t, h.retryAndSync().lacking(dataplane.GroupSysctls), "each start makes a preflight, too")

	h.Remove(drivertest.PreflightFails)
	h.Add(drivertest.Sysctl)
	h.ageChecks(recheckInterval)
	require.Empty(t, h.recheck().lacking(dataplane.GroupSysctls), "the preflight is repeated")
}

func TestAChangedSysctlIsNoticedSoon(t *testing.T) {
	h := newTestDriver(t)
	h.Add(drivertest.Module)
	h.Add(drivertest.Sysctl)
	require.Empty(t, h.retryAndSync().lacking(dataplane.GroupSysctls))
	h.CheckSettings()
	h.retryAndSync()
	require.Empty(t, h.rechecks, "nothing has changed")
	h.Remove(drivertest.Sysctl)
	h.CheckSettings()
	require.NotEmpty(t, h.recheck().lacking(dataplane.GroupSysctls))
}

func TestALostModuleIsNoticedAtTheNextPreflight(t *testing.T) {
	h := newTestDriver(t)
	h.Add(drivertest.Module)
	h.Add(drivertest.Sysctl)
	require.Empty(t, h.retryAndSync().lacking(dataplane.GroupModules))
	h.Remove(drivertest.Module)
	h.ageChecks(slowRecheckInterval)
	require.NotEmpty(t, h.recheck().lacking(dataplane.GroupModules))
	h.requireWorking() // the dataplane has not failed
}

func TestTheLoopDoesNotWaitForAPreflight(t *testing.T) {
	h := newTestDriver(t)
	h.Add(drivertest.Module)
	h.retryAndSync()
	h.ageChecks(slowRecheckInterval)
	for range 3 {
		h.retryAndSync() // recheckLoop does not run
	}
	require.Len(t, h.rechecks, 1, "one preflight at a time")
}

func TestThePreflightOfAFormerProcessIsDropped(t *testing.T) {
	h := newTestDriver(t)
	h.Add(drivertest.Module)
	h.Add(drivertest.Sysctl)
	h.retryAndSync()
	h.ageChecks(slowRecheckInterval)
	h.retryAndSync()
	former := <-h.rechecks
	h.Driver.Stop()
	h.retryAndSync()
	h.setPreflight(former, []dataplane.Check{missingCheck("")}, nil)
	require.Empty(t, h.retryAndSync().lacking(dataplane.GroupModules))
	h.ageChecks(slowRecheckInterval)
	h.recheck() // the preflight is repeated
}

func TestThePreflightIsRepeatedSoonerWhileSomethingRequiredIsMissing(t *testing.T) {
	for about, c := range map[string]struct {
		checks []dataplane.Check
		err    error
		every  time.Duration
	}{
		"nothing works":           {[]dataplane.Check{missingCheck("")}, nil, recheckInterval},
		"something does not work": {[]dataplane.Check{missingCheck("limits")}, nil, slowRecheckInterval},
		"all works":               {nil, nil, slowRecheckInterval},
		"the preflight failed":    {nil, errors.New("interrupted"), recheckInterval},
	} {
		t.Run(about, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f preflightResult
				require.True(t, f.due(), "there was no preflight yet")
				f.set(c.checks, c.err)
				time.Sleep(c.every - time.Second)
				require.False(t, f.due())
				time.Sleep(time.Second)
				require.True(t, f.due())
			})
		})
	}
}

func TestAnErrorThatOnlyRepeatsAFailedCheckIsDropped(t *testing.T) {
	envoy := dataplane.Check{Subject: "program envoy", State: dataplane.CheckMissing, Found: "no Envoy in any of [/nowhere/envoy]", Advice: "install one"}
	sysctl := dataplane.Check{Subject: "sysctl net.ipv4.ip_forward", State: dataplane.CheckMissing, Found: "is 0: this host forwards no IPv4 packets", Command: "sysctl -w net.ipv4.ip_forward=1"}
	const missing = "this host lacks what the dataplane needs:\n"
	for about, c := range map[string]struct {
		check      dataplane.Check
		err, tells string
	}{
		"it contains the finding":    {envoy, "no Envoy in any of [/nowhere/envoy]: install one", missing + envoy.String()},
		"it contains the subject":    {sysctl, "sysctl net.ipv4.ip_forward is 0, so this host forwards nothing", missing + sysctl.String()},
		"it is about something else": {sysctl, "another plugin uses the state directory /var/lib/kubelb", missing + sysctl.String() + "\nconfigure backend b: another plugin uses the state directory /var/lib/kubelb"},
		"it contains more":           {envoy, "no Envoy in any of [/nowhere/envoy]\nno space left", missing + envoy.String() + "\nconfigure backend b: no Envoy in any of [/nowhere/envoy]\nno space left"},
		"something optional missing": {missingCheck("limits"), "module is broken", "configure backend b: module is broken"},
	} {
		t.Run(about, func(t *testing.T) {
			r := runner{log: slog.New(slog.DiscardHandler), description: dataplane.Description{Name: "b"}, result: preflightResult{checks: []dataplane.Check{c.check}}}
			require.EqualError(t, r.explain(errors.New(c.err)), c.tells)
		})
	}
}

func TestAPluginMayStartAlthoughACheckFails(t *testing.T) {
	h := newTestDriver(t)
	h.Add(drivertest.Module)
	h.runner.result.checks = []dataplane.Check{{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing}}
	h.retryAndSync().requireWorking()
}

func TestMissingThingsAreLoggedOnceUntilTheyAreFixed(t *testing.T) {
	h := newTestDriver(t)
	for range 3 {
		h.retryAndSync()
		require.EqualError(t, h.Problem(), "this host lacks what the dataplane needs:\nmodule: not loaded; run: modprobe it\n"+
			"configure backend fake: conn.Receive: netlink receive: no such file or directory")
		require.Equal(t, "module: not loaded; run: modprobe it", h.lacking(dataplane.GroupModules))
	}
	require.Equal(t, 1, strings.Count(h.log.String(), "level=ERROR"), "what each retry says is logged once: %s", h.log.String())
	h.Add(drivertest.Module)
	h.retryAndSync().requireWorking()
	require.Empty(t, h.lacking(dataplane.GroupModules))
	require.Equal(t, "sysctl it: is 0; does not work: forwarding: direct; run: sysctl -w it=1", h.lacking(dataplane.GroupSysctls))
	h.Add(drivertest.Sysctl)
	require.NotEmpty(t, h.retryAndSync().lacking(dataplane.GroupSysctls), "the preflight is repeated only at intervals")
	h.ageChecks(slowRecheckInterval)
	require.Empty(t, h.recheck().lacking(dataplane.GroupSysctls))
}
