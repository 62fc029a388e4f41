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

// asks has a tenant ask for a LoadBalancer with so many ports, of which the hub says so in that version.
func (h *onHost) asks(tenant string, ports int32, version uint64, vips ...netip.Addr) {
	drivertest.RequestLoadBalancer(h.hub, tenant, ports, vips...)
	h.seen = version
}

// versionFor is up to which version the status says that the dataplane holds the tenant's LoadBalancers.
func versionFor(s v1alpha1.GatewayStatus, tenant string) string {
	for _, b := range s.Behind {
		if b.Namespace == "tenant-"+tenant {
			return b.ResourceVersion
		}
	}
	return s.AppliedResourceVersion
}

// ready is the metric.
func (h *onHost) ready() float64 {
	h.t.Helper()
	families, err := h.gathered.Gather()
	require.NoError(h.t, err)
	for _, f := range families {
		if f.GetName() == "kubelb_gateway_ready" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	require.Fail(h.t, "there is no such metric")
	return 0
}

func TestABackendThatBeganAnewIsNotSaidToHoldWhatItWasNotToldYet(t *testing.T) {
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	one := netip.MustParseAddr("203.0.113.9")
	for name, comes := range map[string]func(h *onHost){
		"it ended when it was told of that": func(h *onHost) {
			h.asks("busy", 250, 3, many...)
			h.asks("a", 1, 4, one)
			h.work(h.t.Context())
		},
		"that came while it was left alone": func(h *onHost) {
			h.asks("busy", 250, 3, many...)
			h.work(h.t.Context())
			h.works() // it is started again at once, and ends again
			h.asks("a", 1, 4, one)
			h.work(h.t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newOnHost(t)
			h.Add(drivertest.Module, drivertest.Sysctl)
			requireReady(t, h.conditions())
			h.Add(drivertest.ExitOnApply)
			comes(h)
			require.False(t, h.driver.Running())
			h.Remove(drivertest.ExitOnApply)

			key := model.FrontendKey{VIP: one, Protocol: model.TCP, Port: 1}
			for rounds := 0; ; rounds++ {
				h.works()
				s := (<-h.writer.Newest()).GatewayStatus
				if !h.driver.HasWork() {
					require.NotZero(t, rounds, "there is a time to look at")
					requireReady(t, s.Conditions)
					require.True(t, h.driver.Serves(key))
					require.Equal(t, "4", versionFor(s, "a"))
					return
				}
				ready := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
				require.Equal(t, metav1.ConditionFalse, ready.Status, "it does not hold the model: %s", ready.Message)
				require.Zero(t, h.ready())
				if !h.driver.Serves(key) {
					require.Equal(t, "0", versionFor(s, "a"), "after %d batches", rounds+1)
				}
			}
		})
	}
}

func TestAnObjectSaysWhichTenantsAreBehindAndUpToWhere(t *testing.T) {
	h := newOnHost(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.seen = 3
	h.works()
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	h.asks("hostile", 250, 4, many...)
	h.asks("a", 2, 4, netip.MustParseAddr("203.0.113.9"))
	h.works()
	s := <-h.writer.Newest()
	require.Equal(t, "4", s.AppliedResourceVersion)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "3"}}, s.Behind)
	for h.driver.HasWork() {
		h.works()
	}
	require.Empty(t, (<-h.writer.Newest()).Behind)
	for i := range 2000 {
		h.asks(fmt.Sprint("t", i), 1, 5, netip.AddrFrom4([4]byte{198, 18, byte(i / 256), byte(i)}))
	}
	h.works()
	require.Empty(t, (<-h.writer.Newest()).AppliedResourceVersion, "what cannot be named keeps the former version")
}

func TestWhoLacksNothingIsToldSoWhileAnotherTenantsRecordsAreOnTheirWay(t *testing.T) {
	h := newOnHost(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.Add(drivertest.ExitOnApply)
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	h.asks("hostile", 250, 4, many...)
	h.works()
	require.Error(t, h.driver.Problem())
	h.Remove(drivertest.ExitOnApply)
	h.works()
	s := <-h.writer.Newest()
	require.False(t, meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady))
	require.Equal(t, "4", s.AppliedResourceVersion)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "0"}}, s.Behind)

	require.True(t, h.driver.HandleEnd(h.driver.Process()))
	h.publish()
	require.Empty(t, (<-h.writer.Newest()).AppliedResourceVersion, "what was told last may not have come to anything")
}
