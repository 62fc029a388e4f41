package report

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/watchdog"
)

func TestOnlyFrontendsThatShouldAnswerAreTried(t *testing.T) {
	from := []netip.Addr{netip.MustParseAddr("192.0.0.6"), netip.MustParseAddr("fd4b:7562:654c::6")}
	key := func(port uint16) model.FrontendKey {
		return model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: port}
	}
	pool := func(id model.PoolID, state model.EndpointState) model.Pool {
		return model.Pool{ID: id, Tenant: "a", Endpoints: []model.Endpoint{{ID: "1", Address: netip.MustParseAddr("198.51.100.11"), State: state}}}
	}
	ranges := func(text string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(text)} }
	model := model.Snapshot{
		Pools: []model.Pool{pool("a/up", model.Active), pool("a/drained", model.Draining)},
		Frontends: []model.Frontend{
			{FrontendKey: key(80), Tenant: "a", Pool: "a/up", TargetPort: 30080},
			{FrontendKey: key(81), Tenant: "a", Pool: "a/up", TargetPort: 30081, Forwarding: model.Transparent, MaxConnections: 1},
			{FrontendKey: key(82), Tenant: "a", Pool: "a/up", TargetPort: 30082, Forwarding: model.Direct},
			{FrontendKey: key(83), Tenant: "a", Pool: "a/drained", TargetPort: 30083},
			{FrontendKey: key(84), Tenant: "a", Pool: "a/up", TargetPort: 30084, Restricted: true, SourceRanges: ranges("192.0.2.0/24")},
			{FrontendKey: key(85), Tenant: "a", Pool: "a/up", TargetPort: 30085, Restricted: true, SourceRanges: ranges("0.0.0.0/0")},
			{FrontendKey: key(86), Tenant: "a", Pool: "a/up", TargetPort: 30086},
			{FrontendKey: model.FrontendKey{VIP: key(0).VIP, Protocol: model.UDP, Port: 80}, Tenant: "a", Pool: "a/up", TargetPort: 30087},
		}}
	tried := triable(model, from, isNot(key(86)))
	at := func(port uint16) []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("198.51.100.11"), port)}
	}
	vip := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(key(0).VIP, port) }
	require.Equal(t, []watchdog.Frontend{
		{AddrPort: vip(80), Tenant: "a", Endpoints: at(30080)},
		{AddrPort: vip(81), Tenant: "a", Endpoints: at(30081), KeepsClientAddress: true, Limited: true},
		{AddrPort: vip(85), Tenant: "a", Endpoints: at(30085)},
	}, tried)
}

func isNot(key model.FrontendKey) func(model.Frontend) bool {
	return func(f model.Frontend) bool { return f.FrontendKey != key }
}
