package report

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func TestUseOfALimitIsTheUseOfItsBusiestPort(t *testing.T) {
	key := func(n byte, port uint16) model.FrontendKey {
		return model.FrontendKey{VIP: netip.AddrFrom4([4]byte{203, 0, 113, n}), Protocol: model.TCP, Port: port}
	}
	frontends := []model.Frontend{
		{Tenant: "a", FrontendKey: key(1, 80), MaxConnections: 100, MaxNewPerSecond: 10},
		{Tenant: "a", FrontendKey: key(1, 443), MaxConnections: 100, MaxNewPerSecond: 10},
		{Tenant: "a", FrontendKey: key(2, 80), MaxConnections: 100, MaxNewPerSecond: 10},
		{Tenant: "b", FrontendKey: key(3, 80), MaxConnections: 1000},
		{Tenant: "c", FrontendKey: key(4, 80)},
	}
	now := map[model.FrontendKey]dataplane.Counter{
		key(1, 80): {Connections: 120, Open: 41}, key(1, 443): {Connections: 1000, Open: 7}, key(2, 80): {Connections: 5, Open: 3},
		key(3, 80): {Connections: 9, Open: 24}, key(4, 80): {Connections: 9},
	}
	before := map[model.FrontendKey]dataplane.Counter{key(1, 80): {Connections: 50}, key(2, 80): {Connections: 6}}
	n := func(i int32) *int32 { return &i }
	require.Equal(t, []v1alpha1.GatewayTenantUse{
		{Tenant: "a", ConnectionsPerPort: n(40), NewConnectionsPerSecondPerPort: n(7)},
		{Tenant: "b", ConnectionsPerPort: n(0)},
	}, useOf(frontends, now, before, 10*time.Second), "a counter that was reset, or is new, has no rate")
}

func TestUseIsReportedInStepsOfTheLimit(t *testing.T) {
	for n, want := range map[float64]int32{0: 0, 249: 0, 250: 500, 740: 500, 9800: 10000, 20000: 10000} {
		require.Equal(t, want, roundToStep(n, 10000), "%v of 10000", n)
	}
	require.Equal(t, int32(3), roundToStep(3.9, 5), "use of a small limit is exact")
}

func TestOldUseIsNotReported(t *testing.T) {
	now := time.Now()
	c := Counters{use: []v1alpha1.GatewayTenantUse{{Tenant: "a"}}, read: now}
	require.NotEmpty(t, c.Use(now.Add(2*CountInterval)), "one answer may be late")
	require.Empty(t, c.Use(now.Add(4*CountInterval)), "the dataplane does not answer")
}
