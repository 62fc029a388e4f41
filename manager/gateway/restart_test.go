package gateway

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

// asks has a tenant ask for a LoadBalancer with so many ports, of which the hub says so in that version.
func (h *onHost) asks(tenant string, ports int32, version uint64, vips ...netip.Addr) {
	h.hub.SetTenant(translate.Tenant{Name: tenant, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	lb := translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: "lb"}, Type: "LoadBalancer", VIPs: vips, Addresses: []translate.Address{{IP: "198.51.100.1"}}}
	for n := range ports {
		lb.Ports, lb.EndpointPorts = append(lb.Ports, translate.Port{Number: 1 + n}), append(lb.EndpointPorts, translate.Port{Number: 30000})
	}
	h.hub.SetLoadBalancer(lb)
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
			h.Has(drivertest.Module, drivertest.Sysctl)
			requireReady(t, h.conditions())
			h.Has(drivertest.End)
			comes(h)
			require.False(t, h.driver.Running())
			h.HasNoMore(drivertest.End)

			key := model.FrontendKey{VIP: one, Protocol: model.TCP, Port: 1}
			for rounds := 0; ; rounds++ {
				h.works()
				s := (<-h.status).GatewayStatus
				if !h.driver.HasWork() {
					require.NotZero(t, rounds, "there is a time to look at")
					requireReady(t, s.Conditions)
					require.True(t, h.driver.Serves(key))
					require.Equal(t, "4", versionFor(s, "a"))
					return
				}
				ready := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
				require.Equal(t, metav1.ConditionFalse, ready.Status, "it does not hold the model: %s", ready.Message)
				require.Zero(t, testutil.ToFloat64(h.metrics.ready))
				if !h.driver.Serves(key) {
					require.Equal(t, "0", versionFor(s, "a"), "after %d batches", rounds+1)
				}
			}
		})
	}
}

func TestAnObjectSaysWhichTenantsAreBehindAndUpToWhere(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.seen = 3
	h.works()
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	h.asks("hostile", 250, 4, many...)
	h.asks("a", 2, 4, netip.MustParseAddr("203.0.113.9"))
	h.works()
	version, behind := h.applied()
	require.Equal(t, "4", version)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "3"}}, behind)
	for h.driver.HasWork() {
		h.works()
	}
	_, behind = h.applied()
	require.Empty(t, behind)
	for i := range 2 * maxBehind {
		h.asks(fmt.Sprint("t", i), 1, 5, netip.AddrFrom4([4]byte{198, 18, byte(i / 256), byte(i)}))
	}
	h.works()
	version, _ = h.applied()
	require.Empty(t, version, "what cannot be named keeps the former version")
}

func TestWhoLacksNothingIsToldSoWhileAnotherTenantsRecordsAreOnTheirWay(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.Has(drivertest.End)
	many := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}
	h.asks("hostile", 250, 4, many...)
	h.works()
	require.Error(t, h.driver.Problem())
	h.HasNoMore(drivertest.End)
	h.works()
	s := <-h.status
	require.False(t, meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady))
	require.Equal(t, "4", s.AppliedResourceVersion)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "0"}}, s.Behind)

	require.True(t, h.driver.HasEnded(h.driver.Process()))
	h.publish()
	require.Empty(t, (<-h.status).AppliedResourceVersion, "what was told last may not have come to anything")
}
