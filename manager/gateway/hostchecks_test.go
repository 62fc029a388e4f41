package gateway

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/manager/announce/announcetest"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
	"kubelb.k8c.io/manager/probe"
)

// onHost is a gateway whose plugin runs in the test's own process, and what it logs.
type onHost struct {
	*Gateway
	*drivertest.Host
	t        *testing.T
	log      strings.Builder
	gathered *prometheus.Registry
	// broken is why the plugin does not start.
	broken error
}

func newOnHost(t *testing.T) *onHost {
	return newOnHostWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announcetest.Board{}}})
}

func newOnHostWith(t *testing.T, o Options) *onHost {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	hub := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.Gateway{}).Build()
	h := &onHost{Host: drivertest.NewHost(t), t: t, gathered: prometheus.NewRegistry()}
	o.Name, o.Log = "g", slog.New(slog.NewTextHandler(&h.log, nil))
	o.Backend = driver.Backend{Path: "kubelb-backend-fake", Config: dataplane.Config{Node: "g", StateDir: t.TempDir(), Options: drivertest.Options(h.Dir)}}
	o.Load = func(plugin.Options) (driver.Process, error) {
		if h.broken != nil {
			return nil, h.broken
		}
		return h.Host.Start(), nil
	}
	h.Gateway = New(o, nil, hub)
	h.prober = probe.New(probe.DefaultConfig(), func(probe.Result) {})
	require.NoError(t, h.metrics.Register(h.gathered))
	t.Cleanup(h.driver.Stop)
	return h
}

// works has the gateway do what it does for a change, once its plugin may be started if it does not run.
func (h *onHost) works() {
	h.t.Helper()
	if at := h.driver.RetryAt(); !h.driver.Running() && !at.IsZero() {
		time.Sleep(time.Until(at))
	}
	h.work(h.t.Context())
}

// conditions returns the Gateway object's conditions after that.
func (h *onHost) conditions() []metav1.Condition {
	h.t.Helper()
	h.works()
	require.NoError(h.t, h.writer.Write(h.t.Context(), <-h.writer.Newest()))
	var object v1alpha1.Gateway
	require.NoError(h.t, h.client.Get(h.t.Context(), types.NamespacedName{Name: "g"}, &object))
	return object.Status.Conditions
}

func requireReady(t *testing.T, conditions []metav1.Condition) {
	t.Helper()
	ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionTrue, ready.Status, ready.Message)
}

// lacks is a check of something that is missing, which costs that.
func lacks(costs string) dataplane.Check {
	return dataplane.Check{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing, Found: "not loaded", Costs: costs}
}

func TestTheGatewaySaysWhatItsHostLacksAndHowToMendItUntilItIsMended(t *testing.T) {
	h := newOnHost(t)
	for range 3 {
		conditions := h.conditions()
		ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
		require.Equal(t, metav1.ConditionFalse, ready.Status)
		require.Equal(t, "BackendFailed", ready.Reason)
		require.Equal(t, "this host lacks what the dataplane needs:\nmodule: not loaded; run: modprobe it\n"+
			"configure backend fake: conn.Receive: netlink receive: no such file or directory", ready.Message)
		modules := meta.FindStatusCondition(conditions, "HostModules")
		require.Equal(t, metav1.ConditionFalse, modules.Status)
		require.Equal(t, v1alpha1.ReasonHostLacks, modules.Reason)
		require.Equal(t, "module: not loaded; run: modprobe it", modules.Message)
	}
	require.Equal(t, 1, strings.Count(h.log.String(), "level=ERROR"), "what each retry says is logged once: %s", h.log.String())

	h.Add(drivertest.Module)
	conditions := h.conditions()
	require.True(t, meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady))
	require.Nil(t, meta.FindStatusCondition(conditions, "HostModules"))
	limits := meta.FindStatusCondition(conditions, "HostSysctls")
	require.Equal(t, v1alpha1.ReasonHostLimits, limits.Reason)
	require.Equal(t, "sysctl it: is 0; does not work: forwarding: direct; run: sysctl -w it=1", limits.Message)

}

func TestWhatTheGatewayItselfNeedsIsWatchedToo(t *testing.T) {
	h := newOnHost(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	down := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "interface eth0", State: dataplane.CheckMissing, Found: "is down", Command: "ip link set dev eth0 up"}
	h.options.HostChecks = func(context.Context) []dataplane.Check { return []dataplane.Check{down} }
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- h.watchHost(ctx) }()
	(<-h.events)(h.Gateway)
	end()
	require.NoError(t, <-ended)
	conditions := h.conditions()
	require.Equal(t, "interface eth0: is down; run: ip link set dev eth0 up", meta.FindStatusCondition(conditions, "HostInterfaces").Message)
	require.True(t, meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady), "the dataplane works")
	h.hostChecks = nil
	require.Nil(t, meta.FindStatusCondition(h.conditions(), "HostInterfaces"))
}

func TestTheHostIsLookedAtOftenWhileTheGatewayDoesNotWork(t *testing.T) {
	for about, c := range map[string]struct {
		check dataplane.Check
		pause time.Duration
	}{
		"something required is missing": {lacks(""), hostCheckSoon},
		"a feature is missing":          {lacks("clients with asymmetric routes"), hostCheckEvery},
		"nothing is missing":            {dataplane.Check{State: dataplane.CheckOK}, hostCheckEvery},
	} {
		t.Run(about, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				looks := make(chan time.Time)
				g := New(Options{Log: slog.New(slog.DiscardHandler), HostOptions: HostOptions{HostChecks: func(context.Context) []dataplane.Check {
					looks <- time.Now()
					return []dataplane.Check{c.check}
				}}}, nil, nil)
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
