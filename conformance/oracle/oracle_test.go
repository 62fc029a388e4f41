package oracle

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

var (
	vip    = netip.MustParseAddr("203.0.113.1")
	inside = netip.MustParseAddrPort("192.0.2.100:5000")
	other  = netip.MustParseAddrPort("198.18.0.1:5000")
	one    = netip.MustParseAddr("198.51.100.11")
	two    = netip.MustParseAddr("198.51.100.12")
	three  = netip.MustParseAddr("198.51.100.13")
)

func endpoint(a netip.Addr, state model.EndpointState) model.Endpoint {
	return model.Endpoint{ID: a.String(), Address: a, Weight: 1, State: state}
}

func snapshot(edit func(*model.Frontend), endpoints ...model.Endpoint) model.Snapshot {
	var frontends []model.Frontend
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		f := model.Frontend{FrontendKey: model.FrontendKey{VIP: vip, Protocol: protocol, Port: 80}, Pool: "t/p", TargetPort: 30080}
		if edit != nil {
			edit(&f)
		}
		frontends = append(frontends, f)
	}
	return model.Snapshot{Pools: []model.Pool{{ID: "t/p", Tenant: "t", Endpoints: endpoints}}, Frontends: frontends}
}

func flow(protocol model.Protocol, from netip.AddrPort, port uint16) Flow {
	return Flow{protocol, from, netip.AddrPortFrom(vip, port)}
}

func TestNewFlows(t *testing.T) {
	restrict := func(f *model.Frontend) {
		f.Restricted, f.SourceRanges = true, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	}
	active, draining, unhealthy := endpoint(one, model.Active), endpoint(two, model.Draining), endpoint(three, model.Unhealthy)
	for name, c := range map[string]struct {
		snapshot model.Snapshot
		flow     Flow
		verdict  Verdict
		among    []netip.Addr
	}{
		"nothing is served":                 {model.Snapshot{}, flow(model.TCP, inside, 80), Ignored, nil},
		"another port of a VIP":             {snapshot(nil, active), flow(model.TCP, inside, 81), Refused, nil},
		"one endpoint":                      {snapshot(nil, active), flow(model.TCP, inside, 80), Forwarded, []netip.Addr{one}},
		"an empty pool":                     {snapshot(nil), flow(model.UDP, inside, 80), Refused, nil},
		"active before other endpoints":     {snapshot(nil, active, draining, unhealthy), flow(model.TCP, inside, 80), Forwarded, []netip.Addr{one}},
		"unhealthy before draining":         {snapshot(nil, draining, unhealthy), flow(model.TCP, inside, 80), Forwarded, []netip.Addr{three}},
		"draining if there is nothing else": {snapshot(nil, draining), flow(model.TCP, inside, 80), Forwarded, []netip.Addr{two}},
		"inside the source ranges":          {snapshot(restrict, active), flow(model.UDP, inside, 80), Forwarded, []netip.Addr{one}},
		"outside the source ranges":         {snapshot(restrict, active), flow(model.UDP, other, 80), Dropped, nil},
		"outside, with an empty pool":       {snapshot(restrict), flow(model.UDP, other, 80), Dropped, nil},
		"restricted without any range":      {snapshot(func(f *model.Frontend) { f.Restricted = true }, active), flow(model.TCP, inside, 80), Dropped, nil},
		"UDP like TCP":                      {snapshot(nil, active), flow(model.UDP, inside, 80), Forwarded, []netip.Addr{one}},
	} {
		t.Run(name, func(t *testing.T) {
			d := New().Apply(c.snapshot).Decide(c.flow)
			require.Equal(t, c.verdict, d.Verdict, d.Verdict.String())
			require.Equal(t, c.among, d.Endpoints)
		})
	}
}

func TestADatagramMeetsTheEndpointOfItsFlowUntilThatIsGone(t *testing.T) {
	s := New().Apply(snapshot(nil, endpoint(one, model.Active), endpoint(two, model.Active)))
	udp, tcp := flow(model.UDP, inside, 80), flow(model.TCP, inside, 80)
	s = s.After(udp, one).After(tcp, one)
	require.Equal(t, []netip.Addr{one}, s.Decide(udp).Endpoints)
	require.Equal(t, []netip.Addr{one, two}, s.Decide(tcp).Endpoints, "each connection is a flow of its own")
	drains := s.Apply(snapshot(nil, endpoint(one, model.Draining), endpoint(two, model.Active)))
	require.Equal(t, []netip.Addr{one}, drains.Decide(udp).Endpoints)
	require.Equal(t, []netip.Addr{two}, drains.Decide(flow(model.UDP, other, 80)).Endpoints)
	for name, next := range map[string]model.Snapshot{
		"unhealthy": snapshot(nil, endpoint(one, model.Unhealthy), endpoint(two, model.Active)),
		"gone":      snapshot(nil, endpoint(two, model.Active)),
	} {
		require.Equal(t, []netip.Addr{two}, s.Apply(next).Decide(udp).Endpoints, name)
	}
	both := []model.Endpoint{endpoint(one, model.Active), endpoint(two, model.Active)}
	for name, next := range map[string]model.Snapshot{
		"another owner": snapshot(func(f *model.Frontend) { f.Owner.Name = "other" }, both...),
		"another port":  snapshot(func(f *model.Frontend) { f.TargetPort++ }, both...),
		"another mode":  snapshot(func(f *model.Frontend) { f.Forwarding = model.Transparent }, both...),
	} {
		require.Equal(t, []netip.Addr{one, two}, s.Apply(next).Decide(udp).Endpoints, name)
	}
}

func TestAUDPFlowMayContinueWithAnEndpointThatCameBack(t *testing.T) {
	s := New().Apply(snapshot(nil, endpoint(one, model.Active))).After(flow(model.UDP, inside, 80), one)
	s = s.Apply(snapshot(nil, endpoint(two, model.Active)))
	require.Equal(t, []netip.Addr{two}, s.Decide(flow(model.UDP, inside, 80)).Endpoints)
	back := s.Apply(snapshot(nil, endpoint(one, model.Draining), endpoint(two, model.Active)))
	require.Equal(t, []netip.Addr{two, one}, back.Decide(flow(model.UDP, inside, 80)).Endpoints)
	gone := s.Apply(model.Snapshot{}).Apply(snapshot(nil, endpoint(one, model.Draining), endpoint(two, model.Active)))
	require.Equal(t, []netip.Addr{two}, gone.Decide(flow(model.UDP, inside, 80)).Endpoints)
}

func TestAUDPFlowMayContinueIfTheNewPoolHasItsEndpoint(t *testing.T) {
	s := New().Apply(snapshot(nil, endpoint(one, model.Active))).After(flow(model.UDP, inside, 80), one)
	other := func(state model.EndpointState) []netip.Addr {
		next := snapshot(func(f *model.Frontend) { f.Pool = "t/q" })
		next.Pools = []model.Pool{{ID: "t/q", Tenant: "t", Endpoints: []model.Endpoint{endpoint(one, state), endpoint(two, model.Active)}}}
		return s.Apply(next).Decide(flow(model.UDP, inside, 80)).Endpoints
	}
	require.Equal(t, []netip.Addr{one, two}, other(model.Active))
	require.Equal(t, []netip.Addr{two, one}, other(model.Draining))
	require.Equal(t, []netip.Addr{two}, other(model.Unhealthy))
}

func TestAClientKeepsItsEndpoint(t *testing.T) {
	affinity := func(f *model.Frontend) { f.AffinityTimeout = time.Hour }
	s := New().Apply(snapshot(affinity, endpoint(one, model.Active))).After(flow(model.TCP, inside, 80), one)
	s = s.Apply(snapshot(affinity, endpoint(one, model.Active), endpoint(two, model.Active)))
	again := flow(model.TCP, netip.AddrPortFrom(inside.Addr(), 6000), 80)
	require.Equal(t, []netip.Addr{one}, s.Decide(again).Endpoints)
	require.Len(t, s.Decide(flow(model.UDP, inside, 80)).Endpoints, 2, "another protocol is another frontend")
	require.Len(t, s.Decide(flow(model.TCP, other, 80)).Endpoints, 2, "another client")
	s = s.Apply(snapshot(affinity, endpoint(one, model.Draining), endpoint(two, model.Active)))
	require.Equal(t, []netip.Addr{two}, s.Decide(again).Endpoints)
}
