package gateway

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

// request makes a tenant request a LoadBalancer with so many ports, with the version as its resource version.
func (h *testGateway) request(tenant string, ports int32, version uint64, vips ...netip.Addr) {
	drivertest.RequestLoadBalancer(h.hub, tenant, ports, vips...)
	h.seenVersion = version
}

// heldVersion returns up to which version the dataplane holds the tenant's LoadBalancers, by the status.
func heldVersion(s v1alpha1.GatewayStatus, tenant string) string {
	for _, b := range s.Behind {
		if b.Namespace == "tenant-"+tenant {
			return b.ResourceVersion
		}
	}
	return s.AppliedResourceVersion
}

// readyMetric returns the value of the metric kubelb_gateway_ready.
func (h *testGateway) readyMetric() float64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	require.NoError(h.t, err)
	for _, f := range families {
		if f.GetName() == "kubelb_gateway_ready" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	require.Fail(h.t, "there is no such metric")
	return 0
}

func TestARestartedPluginIsNotReportedToHoldUnsentChanges(t *testing.T) {
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	one := netip.MustParseAddr("203.0.113.9")
	for name, comes := range map[string]func(h *testGateway){
		"it ended when it was sent the change": func(h *testGateway) {
			h.request("busy", 250, 3, many...)
			h.request("a", 1, 4, one)
			h.work(h.t.Context())
		},
		"the change came while it did not run": func(h *testGateway) {
			h.request("busy", 250, 3, many...)
			h.work(h.t.Context())
			h.workOnce() // the plugin is started again at once, and ends again
			h.request("a", 1, 4, one)
			h.work(h.t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestGateway(t)
			h.Add(drivertest.Module, drivertest.Sysctl)
			requireReady(t, h.conditions())
			h.Add(drivertest.ExitOnApply)
			comes(h)
			require.False(t, h.driver.Running())
			h.Remove(drivertest.ExitOnApply)

			key := model.FrontendKey{VIP: one, Protocol: model.TCP, Port: 1}
			for rounds := 0; ; rounds++ {
				h.workOnce()
				s := (<-h.writer.Newest()).GatewayStatus
				if !h.driver.HasWork() {
					require.NotZero(t, rounds, "there is more than one batch")
					requireReady(t, s.Conditions)
					require.True(t, h.driver.Serves(key))
					require.Equal(t, "4", heldVersion(s, "a"))
					return
				}
				ready := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
				require.Equal(t, metav1.ConditionFalse, ready.Status, "the dataplane does not hold the model: %s", ready.Message)
				require.Zero(t, h.readyMetric())
				if !h.driver.Serves(key) {
					require.Equal(t, "0", heldVersion(s, "a"), "after %d batches", rounds+1)
				}
			}
		})
	}
}

func TestTheStatusHasTheTenantsThatAreBehindAndTheirVersions(t *testing.T) {
	h := newTestGateway(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.seenVersion = 3
	h.workOnce()
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	h.request("hostile", 250, 4, many...)
	h.request("a", 2, 4, netip.MustParseAddr("203.0.113.9"))
	h.workOnce()
	s := <-h.writer.Newest()
	require.Equal(t, "4", s.AppliedResourceVersion)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "3"}}, s.Behind)
	for h.driver.HasWork() {
		h.workOnce()
	}
	require.Empty(t, (<-h.writer.Newest()).Behind)
	for i := range 2000 {
		h.request(fmt.Sprint("t", i), 1, 5, netip.AddrFrom4([4]byte{198, 18, byte(i / 256), byte(i)}))
	}
	h.workOnce()
	require.Empty(t, (<-h.writer.Newest()).AppliedResourceVersion, "with too many tenants behind the former version stays")
}

func TestATenantIsNotBehindWhileOnlyRecordsOfOthersAreMissing(t *testing.T) {
	h := newTestGateway(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.Add(drivertest.ExitOnApply)
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	h.request("hostile", 250, 4, many...)
	h.workOnce()
	require.Error(t, h.driver.Problem())
	h.Remove(drivertest.ExitOnApply)
	h.workOnce()
	s := <-h.writer.Newest()
	require.False(t, meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady))
	require.Equal(t, "4", s.AppliedResourceVersion)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "0"}}, s.Behind)

	require.True(t, h.driver.HandleEnd(h.driver.Process()))
	h.publish()
	require.Empty(t, (<-h.writer.Newest()).AppliedResourceVersion, "the last changes may be lost")
}
