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

// testGateway is a gateway whose plugin runs in the test's own process, with its log.
type testGateway struct {
	*Gateway
	*drivertest.Host
	t        *testing.T
	log      strings.Builder
	registry *prometheus.Registry
	// broken is the error of each start of the plugin.
	broken error
}

func newTestGateway(t *testing.T) *testGateway {
	return newTestGatewayWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announcetest.Recorder{}}})
}

func newTestGatewayWith(t *testing.T, o Options) *testGateway {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	hub := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.Gateway{}).Build()
	h := &testGateway{Host: drivertest.NewHost(t), t: t, registry: prometheus.NewRegistry()}
	o.Name, o.Log = "g", slog.New(slog.NewTextHandler(&h.log, nil))
	o.Plugin = driver.Plugin{Path: "kubelb-backend-fake", Config: dataplane.Config{StateDir: t.TempDir(), Options: drivertest.Options(h.Dir)}}
	o.Load = func(plugin.Options) (driver.Process, error) {
		if h.broken != nil {
			return nil, h.broken
		}
		return h.Host.Start(), nil
	}
	h.Gateway = New(o, nil, hub)
	h.prober = probe.New(probe.DefaultConfig(), func(probe.Result) {})
	require.NoError(t, h.metrics.Register(h.registry))
	t.Cleanup(h.driver.Stop)
	return h
}

// workOnce lets the gateway handle a change. If the plugin is to be started later, it waits for that.
func (h *testGateway) workOnce() {
	h.t.Helper()
	if at := h.driver.RetryAt(); !h.driver.Running() && !at.IsZero() {
		time.Sleep(time.Until(at))
	}
	h.work(h.t.Context())
}

// conditions returns the conditions of the Gateway object after workOnce.
func (h *testGateway) conditions() []metav1.Condition {
	h.t.Helper()
	h.workOnce()
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

// missingCheck returns a check of something that is missing, and what that costs.
func missingCheck(costs string) dataplane.Check {
	return dataplane.Check{Group: dataplane.GroupModules, Subject: "module", State: dataplane.CheckMissing, Found: "not loaded", Costs: costs}
}

func TestMissingThingsOfTheHostAreReportedWithAdviceUntilTheyAreFixed(t *testing.T) {
	h := newTestGateway(t)
	for range 3 {
		conditions := h.conditions()
		ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
		require.Equal(t, metav1.ConditionFalse, ready.Status)
		require.Equal(t, "BackendFailed", ready.Reason)
		require.Equal(t, "this host lacks what the dataplane needs:\nmodule: not loaded; run: modprobe it\n"+
			"configure backend fake: conn.Receive: netlink receive: no such file or directory", ready.Message)
		modules := meta.FindStatusCondition(conditions, "HostModules")
		require.Equal(t, metav1.ConditionFalse, modules.Status)
		require.Equal(t, v1alpha1.ReasonHostMissing, modules.Reason)
		require.Equal(t, "module: not loaded; run: modprobe it", modules.Message)
	}
	require.Equal(t, 1, strings.Count(h.log.String(), "level=ERROR"), "what each retry says is logged once: %s", h.log.String())

	h.Add(drivertest.Module)
	conditions := h.conditions()
	require.True(t, meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady))
	require.Nil(t, meta.FindStatusCondition(conditions, "HostModules"))
	limits := meta.FindStatusCondition(conditions, "HostSysctls")
	require.Equal(t, v1alpha1.ReasonHostLimited, limits.Reason)
	require.Equal(t, "sysctl it: is 0; does not work: forwarding: direct; run: sysctl -w it=1", limits.Message)

}

func TestRequirementsOfTheGatewayItselfAreChecked(t *testing.T) {
	h := newTestGateway(t)
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

func TestTheHostIsCheckedMoreOftenWhileTheGatewayDoesNotWork(t *testing.T) {
	for about, c := range map[string]struct {
		check dataplane.Check
		pause time.Duration
	}{
		"something required is missing": {missingCheck(""), hostCheckFastInterval},
		"a feature is missing":          {missingCheck("clients with asymmetric routes"), hostCheckInterval},
		"nothing is missing":            {dataplane.Check{State: dataplane.CheckOK}, hostCheckInterval},
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
