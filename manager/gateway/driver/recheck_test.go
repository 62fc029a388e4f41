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

// lacks is a check of something that is missing, which costs that.
func lacks(costs string) dataplane.Check {
	return dataplane.Check{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing, Found: "not loaded", Costs: costs}
}

// passes has the last question to the plugin be so long ago.
func (h *onHost) passes(d time.Duration) { h.runner.found.asked = time.Now().Add(-d) }

// answered waits until the plugin has been asked again, which it is to be now.
func (h *onHost) answered() *onHost {
	h.t.Helper()
	h.works()
	ctx, end := context.WithCancel(h.t.Context())
	ended, answers := make(chan error), make(chan func(), 1)
	go func() {
		ended <- h.recheckLoop(ctx, func(_ context.Context, answer func()) { answers <- answer })
	}()
	select {
	case answer := <-answers:
		answer()
	case <-time.After(10 * time.Second):
		require.Fail(h.t, "the plugin was not asked")
	}
	end()
	require.NoError(h.t, <-ended)
	return h.works()
}

func TestWhatIsMissingIsSaidWhileTheBackendCannotTell(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module)
	require.NotEmpty(t, h.works().lacks(dataplane.GroupSysctls))
	h.Has(drivertest.Mute)
	h.passes(recheckSeldom)
	require.NotEmpty(t, h.answered().lacks(dataplane.GroupSysctls), "nobody has mended it")
	h.Driver.Stop()
	require.NotEmpty(t, h.works().lacks(dataplane.GroupSysctls), "a start of the backend asks, too")

	h.HasNoMore(drivertest.Mute)
	h.Has(drivertest.Sysctl)
	h.passes(recheckEvery)
	require.Empty(t, h.answered().lacks(dataplane.GroupSysctls), "it is asked again")
}

func TestASysctlThatIsLostLaterIsNoticed(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module)
	h.Has(drivertest.Sysctl)
	require.Empty(t, h.works().lacks(dataplane.GroupSysctls))
	h.NoteHostChange()
	h.works()
	require.Empty(t, h.rechecks, "nothing has changed")
	h.HasNoMore(drivertest.Sysctl)
	h.NoteHostChange()
	require.NotEmpty(t, h.answered().lacks(dataplane.GroupSysctls))
}

func TestWhatIsLostLaterIsNoticedInTheEnd(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module)
	h.Has(drivertest.Sysctl)
	require.Empty(t, h.works().lacks(dataplane.GroupModules))
	h.HasNoMore(drivertest.Module)
	h.passes(recheckSeldom)
	require.NotEmpty(t, h.answered().lacks(dataplane.GroupModules))
	h.requireWorking() // the dataplane has not failed
}

func TestTheLoopDoesNotWaitForTheBackendsAnswer(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module)
	h.works()
	h.passes(recheckSeldom)
	for range 3 {
		h.works() // nobody asks the backend here
	}
	require.Len(t, h.rechecks, 1, "it is asked once at a time")
}

func TestTheAnswerOfAProcessThatHasBeenReplacedIsDropped(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module)
	h.Has(drivertest.Sysctl)
	h.works()
	h.passes(recheckSeldom)
	h.works()
	former := <-h.rechecks
	h.Driver.Stop()
	h.works()
	h.setPreflight(former, []dataplane.Check{lacks("")}, nil)
	require.Empty(t, h.works().lacks(dataplane.GroupModules))
	h.passes(recheckSeldom)
	h.answered() // and it is asked again
}

func TestTheBackendIsAskedTheOftenerTheMoreIsMissing(t *testing.T) {
	for about, c := range map[string]struct {
		checks []dataplane.Check
		err    error
		every  time.Duration
	}{
		"nothing works":                {[]dataplane.Check{lacks("")}, nil, recheckEvery},
		"something does not work":      {[]dataplane.Check{lacks("limits")}, nil, recheckSeldom},
		"all works":                    {nil, nil, recheckSeldom},
		"the backend could not answer": {nil, errors.New("interrupted"), recheckEvery},
	} {
		t.Run(about, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f findings
				require.True(t, f.due(), "it has never been asked")
				f.take(c.checks, c.err)
				time.Sleep(c.every - time.Second)
				require.False(t, f.due())
				time.Sleep(time.Second)
				require.True(t, f.due())
			})
		})
	}
}

func TestAnErrorThatOnlyRepeatsWhatIsMissingIsLeftOut(t *testing.T) {
	envoy := dataplane.Check{Subject: "program envoy", State: dataplane.CheckMissing, Found: "no Envoy in any of [/nowhere/envoy]", Advice: "install one"}
	sysctl := dataplane.Check{Subject: "sysctl net.ipv4.ip_forward", State: dataplane.CheckMissing, Found: "is 0: this host forwards no IPv4 packets", Command: "sysctl -w net.ipv4.ip_forward=1"}
	const missing = "this host lacks what the dataplane needs:\n"
	for about, c := range map[string]struct {
		check      dataplane.Check
		err, tells string
	}{
		"it says what was found":     {envoy, "no Envoy in any of [/nowhere/envoy]: install one", missing + envoy.String()},
		"it names the subject":       {sysctl, "sysctl net.ipv4.ip_forward is 0, so this host forwards nothing", missing + sysctl.String()},
		"it says something else":     {sysctl, "another plugin uses the state directory /var/lib/kubelb", missing + sysctl.String() + "\nconfigure backend b: another plugin uses the state directory /var/lib/kubelb"},
		"it says something more":     {envoy, "no Envoy in any of [/nowhere/envoy]\nno space left", missing + envoy.String() + "\nconfigure backend b: no Envoy in any of [/nowhere/envoy]\nno space left"},
		"something optional missing": {lacks("limits"), "module is broken", "configure backend b: module is broken"},
	} {
		t.Run(about, func(t *testing.T) {
			r := runner{log: slog.New(slog.DiscardHandler), description: dataplane.Description{Name: "b"}, found: findings{checks: []dataplane.Check{c.check}}}
			require.EqualError(t, r.explain(errors.New(c.err)), c.tells)
		})
	}
}

func TestABackendThatStartsInSpiteOfACheckIsNotKeptFromIt(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module)
	h.runner.found.checks = []dataplane.Check{{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing}}
	h.works().requireWorking()
}

func TestWhatAHostLacksIsSaidOnceUntilItIsMended(t *testing.T) {
	h := newOnHost(t)
	for range 3 {
		h.works()
		require.EqualError(t, h.Problem(), "this host lacks what the dataplane needs:\nmodule: not loaded; run: modprobe it\n"+
			"configure backend fake: conn.Receive: netlink receive: no such file or directory")
		require.Equal(t, "module: not loaded; run: modprobe it", h.lacks(dataplane.GroupModules))
	}
	require.Equal(t, 1, strings.Count(h.log.String(), "level=ERROR"), "what each retry says is logged once: %s", h.log.String())
	h.Has(drivertest.Module)
	h.works().requireWorking()
	require.Empty(t, h.lacks(dataplane.GroupModules))
	require.Equal(t, "sysctl it: is 0; does not work: forwarding: direct; run: sysctl -w it=1", h.lacks(dataplane.GroupSysctls))
	h.Has(drivertest.Sysctl)
	require.NotEmpty(t, h.works().lacks(dataplane.GroupSysctls), "the plugin is asked now and then alone")
	h.passes(recheckSeldom)
	require.Empty(t, h.answered().lacks(dataplane.GroupSysctls))
}
