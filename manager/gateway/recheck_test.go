package gateway

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
)

// lacks is a check of something that is missing, which costs that.
func lacks(costs string) dataplane.Check {
	return dataplane.Check{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing, Found: "not loaded", Costs: costs}
}

func TestWhatIsMissingIsSaidWhileTheBackendCannotTell(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	require.NotNil(t, meta.FindStatusCondition(h.conditions(), "HostSysctls"))
	h.has(muteFile)
	h.passes(recheckSeldom)
	require.NotNil(t, meta.FindStatusCondition(h.answered(), "HostSysctls"), "nobody has mended it")
	h.host.stop()
	require.NotNil(t, meta.FindStatusCondition(h.conditions(), "HostSysctls"), "a start of the backend asks, too")

	h.hasNoMore(muteFile)
	h.has(sysctlFile)
	h.passes(recheckEvery)
	require.Nil(t, meta.FindStatusCondition(h.answered(), "HostSysctls"), "it is asked again")
}

func TestASysctlThatIsLostLaterIsNoticed(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	h.options.HostChecks = func(context.Context) []dataplane.Check { return nil }
	require.Nil(t, meta.FindStatusCondition(h.conditions(), "HostSysctls"))
	look := func() {
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- h.watchHost(ctx) }()
		(<-h.events)(h.Gateway)
		end()
		require.NoError(t, <-ended)
	}
	look()
	h.conditions()
	require.Empty(t, h.rechecks, "nothing has changed")
	h.hasNoMore(sysctlFile)
	look()
	require.NotNil(t, meta.FindStatusCondition(h.answered(), "HostSysctls"))
}

func TestWhatIsLostLaterIsNoticedInTheEnd(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	require.Nil(t, meta.FindStatusCondition(h.conditions(), "HostModules"))
	h.hasNoMore(moduleFile)
	h.passes(recheckSeldom)
	conditions := h.answered()
	require.NotNil(t, meta.FindStatusCondition(conditions, "HostModules"))
	require.True(t, meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady), "the dataplane has not failed")
}

func TestTheLoopDoesNotWaitForTheBackendsAnswer(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.conditions()
	h.passes(recheckSeldom)
	for range 3 {
		h.conditions() // nobody asks the backend here
	}
	require.Len(t, h.rechecks, 1, "it is asked once at a time")
}

func TestTheAnswerOfAProcessThatHasBeenReplacedIsDropped(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	h.conditions()
	h.passes(recheckSeldom)
	h.conditions()
	former := <-h.rechecks
	h.host.stop()
	h.conditions()
	h.rechecked(former, []dataplane.Check{lacks("")}, nil)
	require.Nil(t, meta.FindStatusCondition(h.conditions(), "HostModules"))
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

func TestTheHostIsLookedAtOftenWhileTheGatewayDoesNotWork(t *testing.T) {
	for about, c := range map[string]struct {
		check dataplane.Check
		pause time.Duration
	}{
		"something required is missing": {lacks(""), recheckSoon},
		"a feature is missing":          {lacks("clients with asymmetric routes"), recheckEvery},
		"nothing is missing":            {dataplane.Check{State: dataplane.CheckOK}, recheckEvery},
	} {
		t.Run(about, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				looks := make(chan time.Time)
				g := New(Options{Log: slog.New(slog.DiscardHandler), HostChecks: func(context.Context) []dataplane.Check {
					looks <- time.Now()
					return []dataplane.Check{c.check}
				}}, nil, nil)
				ctx, end := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- g.watchHost(ctx) }()
				first := <-looks
				require.Equal(t, c.pause, (<-looks).Sub(first))
				synctest.Wait()
				end()
				require.NoError(t, <-ended)
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
		"it says something else":     {sysctl, "another backend works on /var/lib/kubelb", missing + sysctl.String() + "\nconfigure backend b: another backend works on /var/lib/kubelb"},
		"it says something more":     {envoy, "no Envoy in any of [/nowhere/envoy]\nno space left", missing + envoy.String() + "\nconfigure backend b: no Envoy in any of [/nowhere/envoy]\nno space left"},
		"something optional missing": {lacks("limits"), "module is broken", "configure backend b: module is broken"},
	} {
		t.Run(about, func(t *testing.T) {
			h := host{log: slog.New(slog.DiscardHandler), description: dataplane.Description{Name: "b"}, found: findings{checks: []dataplane.Check{c.check}}}
			require.EqualError(t, h.explain(errors.New(c.err)), c.tells)
		})
	}
}
