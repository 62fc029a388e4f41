package gateway

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

// createGateway creates the Gateway object with the status that a former process wrote last.
func (h *testGateway) createGateway(s v1alpha1.GatewayStatus) {
	h.t.Helper()
	object := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}}
	require.NoError(h.t, h.client.Create(h.t.Context(), object))
	object.Status = s
	require.NoError(h.t, h.client.Status().Update(h.t.Context(), object))
}

func (h *testGateway) status() v1alpha1.GatewayStatus {
	h.t.Helper()
	var object v1alpha1.Gateway
	require.NoError(h.t, h.client.Get(h.t.Context(), types.NamespacedName{Name: "g"}, &object))
	return object.Status
}

// run runs the loop and the writer until end is called.
func (h *testGateway) run() (end func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	ended := make(chan error, 2)
	go func() { ended <- h.loop(ctx, func() bool { return true }) }()
	go func() { ended <- h.writer.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(h.t, <-ended)
		require.NoError(h.t, <-ended)
	}
}

func refusedBefore() v1alpha1.GatewayStatus {
	return v1alpha1.GatewayStatus{AppliedResourceVersion: "10", AnnouncedResourceVersion: "10", Unlisted: []string{"tenant-b"},
		Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/x", Record: "frontend TCP 203.0.113.1:80", Message: "full"}, {Record: "backend ebpf", Message: "busy"}},
		Silent:   []v1alpha1.GatewaySilence{{Family: corev1.IPv6Protocol, Message: "no router is told of it"}}}
}

func TestANewProcessKeepsFormerRefusalsUntilItKnowsWhatTheDataplaneHolds(t *testing.T) {
	h := newTestGateway(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	h.createGateway(refusedBefore())
	h.Add(drivertest.Hang("Configure")) // the start of the plugin takes a second
	end := h.run()
	defer end()
	require.Eventually(t, func() bool {
		ready := meta.FindStatusCondition(h.status().Conditions, v1alpha1.ConditionReady)
		return ready != nil && ready.Reason == "BackendRestarting"
	}, 20*time.Second, 10*time.Millisecond)
	time.Sleep(time.Second)
	now, before := h.status(), refusedBefore()
	require.Equal(t, "10", now.AppliedResourceVersion, "the dataplane holds what it held")
	require.Equal(t, before.Failures[:1], now.Failures, "it does not hold what it refused; this process itself knows the former backends")
	require.Equal(t, before.Unlisted, now.Unlisted)
	require.Equal(t, before.AnnouncedResourceVersion, now.AnnouncedResourceVersion)
	require.Equal(t, before.Silent, now.Silent, "IPv6 addresses are announced to nobody yet")

	h.Remove(drivertest.Hang("Configure"))
	require.Eventually(t, func() bool {
		now = h.status()
		return meta.IsStatusConditionTrue(now.Conditions, v1alpha1.ConditionReady)
	}, 20*time.Second, 10*time.Millisecond)
	require.Empty(t, now.Failures, "this dataplane holds everything")
	require.Empty(t, now.Unlisted)
	require.Empty(t, now.Silent)
}
