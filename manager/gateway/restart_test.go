package gateway

import (
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/probe"
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
			h.retryAt = time.Now().Add(time.Hour)
			h.asks("a", 1, 4, one)
			h.work(h.t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newOnHost(t)
			h.prober = probe.New(probe.DefaultConfig(), func(probe.Result) {})
			h.has(moduleFile)
			h.has(sysctlFile)
			requireReady(t, h.conditions())
			h.has(endFile)
			comes(h)
			require.False(t, h.host.running())
			h.hasNoMore(endFile)

			key := model.FrontendKey{VIP: one, Protocol: model.TCP, Port: 1}
			h.retryAt = time.Now()
			for rounds := 0; ; rounds++ {
				h.work(t.Context())
				s := (<-h.status).GatewayStatus
				if h.backlog.Empty() {
					require.NotZero(t, rounds, "there is a time to look at")
					requireReady(t, s.Conditions)
					require.True(t, h.held[key])
					require.Equal(t, "4", versionFor(s, "a"))
					return
				}
				ready := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
				require.Equal(t, metav1.ConditionFalse, ready.Status, "it does not hold the model: %s", ready.Message)
				require.Zero(t, testutil.ToFloat64(h.metrics.ready))
				if !h.held[key] {
					require.Equal(t, "0", versionFor(s, "a"), "after %d batches", rounds+1)
				}
			}
		})
	}
}
