package nftables

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/core/model"
)

var (
	staleVIP     = netip.MustParseAddr("203.0.113.1")
	staleClient  = netip.MustParseAddr("192.0.2.9")
	staleGateway = netip.MustParseAddr("198.51.100.254")
)

// staleTrial serves TCP and UDP port 80 by three endpoints: one is active, one drains and one is unhealthy.
func staleTrial(t *testing.T) *trial {
	k := newTrial(t, families[0])
	of := endpoints(3)
	of[1].State, of[2].State = model.Draining, model.Unhealthy
	k.pool("t/all", of...)
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		k.frontend(labFrontend(protocol, staleVIP, 80, 30080, "all"))
	}
	return k
}

// natFlow returns a flow to the endpoint with this number; number 3 has left the pool.
func natFlow(protocol model.Protocol, endpoint int, state uint8) *hostflows.Flow {
	return &hostflows.Flow{Protocol: protocol, Client: staleClient, ClientPort: 4000, VIP: staleVIP, VIPPort: 80, Endpoint: endpoints(4)[endpoint].Address, EndpointPort: 30080,
		ReplyTo: staleGateway, State: state}
}

func TestFlowsEndWithTheirEndpoint(t *testing.T) {
	const active, draining, unhealthy, gone = 0, 1, 2, 3
	const established, unanswered, closed = nl.TCP_CONNTRACK_ESTABLISHED, nl.TCP_CONNTRACK_SYN_SENT, nl.TCP_CONNTRACK_TIME_WAIT
	s := staleFilter{state: staleTrial(t).state}
	for _, c := range []struct {
		protocol model.Protocol
		endpoint int
		state    uint8
		ends     bool
	}{
		{model.UDP, active, 0, false}, {model.UDP, draining, 0, false}, {model.UDP, unhealthy, 0, true}, {model.UDP, gone, 0, true},
		{model.TCP, active, established, false}, {model.TCP, draining, established, false}, {model.TCP, unhealthy, established, false}, {model.TCP, gone, established, false},
		{model.TCP, active, unanswered, false}, {model.TCP, draining, unanswered, true}, {model.TCP, unhealthy, unanswered, true}, {model.TCP, gone, unanswered, true},
		{model.TCP, active, closed, false}, {model.TCP, draining, closed, true}, {model.TCP, unhealthy, closed, true}, {model.TCP, gone, closed, true},
	} {
		require.Equal(t, c.ends, s.matches(natFlow(c.protocol, c.endpoint, c.state)), "%+v", c)
	}
	noted := natFlow(model.TCP, gone, established)
	noted.Mark = notes | slowBit | endBit
	require.True(t, s.matches(noted), "a reset was seen")
	noted.Mark = notes | slowBit
	require.False(t, s.matches(noted))
}

func TestFlowsEndIfTheirFrontendSendsThemElsewhere(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*hostflows.Flow)
		ends   bool
	}{
		"as it is":                          {func(*hostflows.Flow) {}, false},
		"to a former target port":           {func(f *hostflows.Flow) { f.EndpointPort = 30081 }, true},
		"transparent, as it was before":     {func(f *hostflows.Flow) { f.ReplyTo = f.Client }, true},
		"direct, as it was before":          {func(f *hostflows.Flow) { f.Mark = directNumbers + 1 }, true},
		"to a port without frontend":        {func(f *hostflows.Flow) { f.VIPPort = 81 }, true},
		"to an address that is no VIP":      {func(f *hostflows.Flow) { f.VIP = staleGateway }, false},
		"of a protocol without frontends":   {func(f *hostflows.Flow) { f.Protocol = 132 }, false},
		"from before the address was a VIP": {func(f *hostflows.Flow) { f.Endpoint, f.EndpointPort, f.ReplyTo = f.VIP, f.VIPPort, f.Client }, true},
	} {
		f := natFlow(model.UDP, 0, 0)
		c.change(f)
		require.Equal(t, c.ends, staleFilter{state: staleTrial(t).state}.matches(f), what)
	}
}

// Draining endpoints are not in the kernel, so a new process does not know them until it gets the pool.
func TestFlowsToUnknownEndpointsOfAnAdoptedPoolGoOn(t *testing.T) {
	k := staleTrial(t)
	s := staleFilter{state: k.state}
	gone := natFlow(model.UDP, 3, 0)
	k.pools["t/all"].complete = false
	require.False(t, s.matches(gone))
	k.pools["t/all"].complete = true
	require.True(t, s.matches(gone))
}

func TestAllFlowsOfADeletedFrontendEnd(t *testing.T) {
	k := staleTrial(t)
	ended := newEnded()
	ended.add(k.carry(k.planDeleteFrontend(labFrontend(model.TCP, staleVIP, 80, 30080, "all").FrontendKey), nil))
	s := staleFilter{state: k.state, ended: ended}
	require.True(t, s.matches(natFlow(model.TCP, 0, nl.TCP_CONNTRACK_ESTABLISHED)))
	require.False(t, s.matches(natFlow(model.UDP, 0, 0)), "another frontend of the address")
	local := natFlow(model.TCP, 0, nl.TCP_CONNTRACK_ESTABLISHED)
	local.Endpoint, local.EndpointPort = local.VIP, local.VIPPort
	require.False(t, s.matches(local), "a connection that is not rewritten is another program's")
	udp := labFrontend(model.UDP, staleVIP, 80, 30080, "all").FrontendKey
	ended.add(k.carry(k.planDeleteFrontend(udp), nil))
	require.Empty(t, k.vips)
	require.True(t, s.matches(natFlow(model.UDP, 0, 0)), "the address was a VIP")
}

func TestAFlowFromBeforeANewTableEndsUnlessItsEndpointIsTheTenants(t *testing.T) {
	k := newTrial(t, families[0])
	k.created = true
	k.pool("t/all", endpoints(1)...)
	f := labFrontend(model.TCP, staleVIP, 80, 30080, "all")
	ended := newEnded()
	ended.add(k.frontend(f))
	s := staleFilter{state: k.state, ended: ended, tenantAddresses: k.tenantAddresses()}
	require.False(t, s.matches(natFlow(model.TCP, 0, nl.TCP_CONNTRACK_ESTABLISHED)))
	require.True(t, s.matches(natFlow(model.TCP, 3, nl.TCP_CONNTRACK_ESTABLISHED)))
	adopted := newTrial(t, families[0])
	adopted.pool("t/all", endpoints(1)...)
	require.Empty(t, adopted.frontend(f).added, "the table of a former process already decided on them")
}

func TestConnectionsOfAFrontendWithALimitAreCountedAsTheKernelCountsThem(t *testing.T) {
	limited := labFrontend(model.TCP, staleVIP, 80, 30080, "all").FrontendKey
	counts := counting{limited: 0}
	for _, state := range []uint8{nl.TCP_CONNTRACK_ESTABLISHED, nl.TCP_CONNTRACK_SYN_SENT, nl.TCP_CONNTRACK_FIN_WAIT, nl.TCP_CONNTRACK_TIME_WAIT, nl.TCP_CONNTRACK_CLOSE} {
		require.False(t, counts.count(natFlow(model.TCP, 0, state)), "no entry is deleted")
	}
	counts.count(natFlow(model.UDP, 0, 0))
	require.Equal(t, counting{limited: 3}, counts, "neither ended connections nor those of frontends without a limit")
}

func TestScansOfConnectionTrackingTakeABoundedShareOfTheTime(t *testing.T) {
	now := time.Now()
	require.True(t, scan{}.isDue(), "there was no scan yet")
	require.False(t, scan{at: now, took: time.Minute}.isDue())
	require.False(t, scan{at: now.Add(-(scanShare - 1) * time.Minute), took: time.Minute}.isDue())
	require.True(t, scan{at: now.Add(-scanShare * time.Minute), took: time.Minute}.isDue())
}
