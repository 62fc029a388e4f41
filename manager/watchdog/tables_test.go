package watchdog

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

// learned is an entry of the kernel's table.
func learned(state int, mac ...byte) netlink.Neigh {
	return netlink.Neigh{State: state, HardwareAddr: mac}
}

func TestOnlyEntriesThatTheKernelLearnedFromAHostAreHosts(t *testing.T) {
	for says, c := range map[string]struct {
		entry netlink.Neigh
		want  bool
	}{
		"it answers":                     {learned(netlink.NUD_REACHABLE, 2, 0, 0, 0, 0, 9), true},
		"it answered before":             {learned(netlink.NUD_STALE, 2, 0, 0, 0, 0, 9), true},
		"it is being asked":              {learned(netlink.NUD_PROBE, 2, 0, 0, 0, 0, 9), true},
		"nobody has answered":            {learned(netlink.NUD_FAILED), false},
		"an operator has entered it":     {learned(netlink.NUD_PERMANENT, 2, 0, 0, 0, 0, 9), false},
		"the interface needs no answers": {learned(netlink.NUD_NOARP, 2, 0, 0, 0, 0, 9), false},
		"it has no MAC address":          {learned(netlink.NUD_STALE, 0, 0, 0, 0, 0, 0), false},
		"it has that of a group":         {learned(netlink.NUD_STALE, 1, 0, 0x5e, 0, 0, 1), false},
		"it has an InfiniBand address":   {learned(netlink.NUD_STALE, make([]byte, 20)...), false},
	} {
		require.Equal(t, c.want, isLearned(c.entry), says)
	}
}

func TestRoutersAndHostsThatAnsweredLastAreKeptIfThereAreTooMany(t *testing.T) {
	known, table, now := map[netip.Addr]*neighbour{}, map[netip.Addr]netlink.Neigh{}, time.Now()
	host := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}) }
	for n := range 3 * maxNeighbours {
		table[host(n)] = learned(netlink.NUD_STALE, 2, 0, 0, 0, 0, byte(n+1))
		known[host(n)] = &neighbour{index: 7, lastAnswer: now.Add(time.Duration(n) * time.Second)}
	}
	router := host(200)
	updateKnown(known, table, map[netip.Addr]bool{router: true}, 7)
	require.Len(t, known, maxNeighbours)
	require.Contains(t, known, router, "it has not answered yet")
	require.True(t, known[router].router)
	for n := 2*maxNeighbours + 1; n < 3*maxNeighbours; n++ {
		require.Contains(t, known, host(n))
	}
	require.Equal(t, "02:00:00:00:00:30", known[host(3*maxNeighbours-1)].mac)
}

func TestHostsOfAFormerInterfaceOfTheNameAreForgotten(t *testing.T) {
	one, two := addressOf("h1"), addressOf("h2")
	known := map[netip.Addr]*neighbour{one: {index: 6, mac: "a", lastAnswer: time.Now()}, two: {index: 7, mac: "b"}}
	updateKnown(known, nil, nil, 7)
	require.NotContains(t, known, one)
	require.Contains(t, known, two)
	updateKnown(known, map[netip.Addr]netlink.Neigh{one: learned(netlink.NUD_STALE, 2, 0, 0, 0, 0, 9)}, nil, 7)
	require.Zero(t, known[one].lastAnswer, "it has to answer first")
}

func TestTheKernelsTablesNameHostsAndRoutersOfAnInterface(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		if !assert.NoError(t, preflighttest.Plug("uplink", "198.51.100.1/24", "2001:db8::1/64")) || !assert.NoError(t, preflighttest.Plug("other", "192.0.2.1/24")) {
			return
		}
		link, err := netlink.LinkByName("uplink")
		assert.NoError(t, err)
		index := link.Attrs().Index
		host := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		for _, a := range []string{"198.51.100.9", "2001:db8::9"} {
			assert.NoError(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: net.ParseIP(a), State: netlink.NUD_STALE, HardwareAddr: host}))
		}
		assert.NoError(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index, Gw: net.IP{198, 51, 100, 254}}))
		table, err := neighbourTable(index)
		assert.NoError(t, err)
		for _, a := range []string{"198.51.100.9", "2001:db8::9"} {
			assert.True(t, isLearned(table[netip.MustParseAddr(a)]), a)
		}
		for a := range table {
			assert.False(t, a.IsMulticast(), "no host has the address %s", a)
		}
		routers, err := routersBy(index)
		assert.NoError(t, err)
		assert.Equal(t, map[netip.Addr]bool{netip.MustParseAddr("198.51.100.254"): true}, routers)
		other, err := netlink.LinkByName("other")
		assert.NoError(t, err)
		routers, err = routersBy(other.Attrs().Index)
		assert.NoError(t, err)
		assert.Empty(t, routers)
	})
}

func TestAnInterfaceThatIsMissingOrDownIsReportedByAnotherCondition(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		probe := func(name string) probeResult {
			known := map[netip.Addr]*neighbour{}
			result, err := (&Neighbours{}).probeInterface(t.Context(), name, known)
			assert.NoError(t, err)
			assert.Empty(t, known)
			return result
		}
		assert.Equal(t, hostAnswers, probe("uplink"), "there is none")
		assert.NoError(t, preflighttest.Plug("uplink"))
		link, err := netlink.LinkByName("uplink")
		assert.NoError(t, err)
		assert.NoError(t, netlink.LinkSetDown(link))
		assert.Equal(t, hostAnswers, probe("uplink"))
	})
}

func TestEachOutcomeHasAWordAndASentence(t *testing.T) {
	words, sentences := map[string]bool{}, map[string]bool{}
	for o := Answered; o <= Unreachable; o++ {
		require.NotContains(t, o.String(), "outcome-", o.Word())
		words[o.Word()], sentences[o.String()] = true, true
	}
	require.Len(t, words, int(Unreachable)+1)
	require.Len(t, sentences, int(Unreachable)+1)
	require.Equal(t, "outcome-77", Outcome(77).String())
}

func TestAPacketThatIsNotWholeIsNoAnswer(t *testing.T) {
	for _, f := range flows() {
		frame := reversed(f, flagSYN|flagACK, 7)
		for length := range len(frame) {
			_, ok := parseAnswer(frame[:length])
			require.False(t, ok, "%d bytes of %d", length, len(frame))
		}
	}
	frame := reversed(flows()[0], flagACK, 7)
	for says, change := range map[string]func([]byte){
		"a header that is too short": func(b []byte) { b[ethernetHeader] = 0x44 },
		"a header beyond the end":    func(b []byte) { b[ethernetHeader] = 0x4f },
		"an unknown version of IP":   func(b []byte) { b[ethernetHeader] = 0x55 },
		"neither TCP nor ICMP":       func(b []byte) { b[ethernetHeader+9] = 17 },
		"ICMPv6 in IPv4":             func(b []byte) { b[ethernetHeader+9] = protocolICMPv6 },
	} {
		broken := append([]byte{}, frame...)
		change(broken)
		_, ok := parseAnswer(broken)
		require.False(t, ok, says)
	}
}

func TestPaddingOfAShortFrameIsNoData(t *testing.T) {
	padded := append(reversed(flows()[0], flagACK, 7), make([]byte, 6)...)
	a, ok := parseAnswer(padded)
	require.True(t, ok)
	require.False(t, a.data)
	full := append(reversed(flows()[0], flagACK, 7), 'x')
	binary.BigEndian.PutUint16(full[ethernetHeader+2:], ipv4Header+tcpHeader+1)
	a, ok = parseAnswer(full)
	require.True(t, ok)
	require.True(t, a.data)
}

func TestAnICMPv6ErrorIsParsedAsAnAnswerToItsTry(t *testing.T) {
	try := flows()[1]
	about := tcpSegment{flow: try, seq: 9, flags: flagSYN}.frame(clientMAC, nearMAC)[ethernetHeader:]
	frame := func(kind, code byte, about []byte) []byte {
		b := reversed(try, 0, 0)[:ethernetHeader+ipv6Header]
		b[ethernetHeader+6] = protocolICMPv6
		return append(append(b, kind, code, 0, 0, 0, 0, 0, 0), about...)
	}
	for says, c := range map[string]struct {
		frame      []byte
		ok, noPort bool
	}{
		"no route":                  {frame(icmpv6Unreachable, 0, about), true, false},
		"nobody listens":            {frame(icmpv6Unreachable, icmpv6NoPort, about), true, true},
		"too many routers":          {frame(icmpv6TimeExceeded, 0, about), true, false},
		"a packet that was too big": {frame(2, 0, about), false, false},
		"an echo":                   {frame(129, 0, about), false, false},
		"about less than is needed": {frame(icmpv6Unreachable, 0, about[:ipv6Header+tcpBeginning-1]), false, false},
		"about nothing":             {frame(icmpv6Unreachable, 0, nil), false, false},
	} {
		a, ok := parseAnswer(c.frame)
		require.Equal(t, c.ok, ok, says)
		if ok {
			require.Equal(t, answer{flow: try, seq: 9, unreachable: true, noPort: c.noPort}, a, says)
		}
	}
}

// Endpoints of a tenant that are asked are not those of others.
func TestEndpointsOfATenantAreAskedForFewOfItsFrontendsAtATime(t *testing.T) {
	w := New(Options{Interval: time.Minute})
	w.requests = make(chan endpointRequest, queueLength)
	var states []*frontendState
	for n := range maxRequestsPerTenant + 1 {
		states = append(states, &frontendState{Frontend: Frontend{Tenant: "a", AddrPort: netip.AddrPortFrom(vip4, uint16(80+n)), Endpoints: make([]netip.AddrPort, 2*maxEndpoints)}})
		w.requestEndpoints(states[n])
	}
	require.Len(t, w.requests, maxRequestsPerTenant)
	require.False(t, states[maxRequestsPerTenant].requested)
	other := &frontendState{Frontend: Frontend{Tenant: "b"}}
	w.requestEndpoints(other)
	require.True(t, other.requested)
	first := <-w.requests
	require.Len(t, first.endpoints, maxEndpoints)
	w.setEndpoints(endpointResult{frontendState: first.frontendState, count: maxEndpoints})
	require.False(t, first.frontendState.requested)
	w.requestEndpoints(states[maxRequestsPerTenant])
	require.True(t, states[maxRequestsPerTenant].requested, "there is room again")

	w.requests = make(chan endpointRequest)
	full := &frontendState{Frontend: Frontend{Tenant: "c"}}
	w.requestEndpoints(full)
	require.False(t, full.requested, "the next failed try asks again")
	require.Zero(t, w.requested["c"])
}

func TestTheMessageSaysWhatTheNodesDoAndWhetherALimitMayBeTheReason(t *testing.T) {
	refused := endpointResult{at: time.Now(), count: 1, silent: []string{"198.51.100.11:30080 (connection refused)"}, refused: true}
	silent := endpointResult{at: time.Now(), count: 2, silent: []string{"198.51.100.11:30080 (no answer)"}}
	for want, c := range map[string]struct {
		result  endpointResult
		limited bool
	}{
		"connections get no answer": {endpointResult{at: time.Now()}, false},
		"connections get no answer; its nodes refuse the gateway itself, too, as they do if the Service has no ready pod": {refused, false},
		"connections get no answer; the gateway itself does not reach 198.51.100.11:30080 (no answer)":                    {silent, false},
		"connections get no answer; it has a limit of connections, which may be the reason":                               {endpointResult{at: time.Now()}, true},
	} {
		w := New(Options{Interval: time.Minute})
		w.answeredFamilies[true] = true
		state := &frontendState{Frontend: Frontend{AddrPort: flows()[0].frontend, Limited: c.limited}, history: *historyOf("nnn"), endpoints: c.result}
		message, fails := w.failure(state)
		require.True(t, fails)
		require.Equal(t, want, message)
		require.Equal(t, len(c.result.silent) > 0, nodesFail(message), "the next process reads it")
	}
}

func TestOnlySomeFailingFrontendsOfATenantAreTriedAgainSoon(t *testing.T) {
	w, now := New(Options{Interval: time.Hour}), time.Now()
	ends := func(tenant string, n int) time.Duration {
		state := &frontendState{Frontend: Frontend{Tenant: tenant, AddrPort: netip.AddrPortFrom(vip4, uint16(n))}}
		w.frontends[state.AddrPort] = state
		w.finish(&try{flow: flow{frontend: state.AddrPort}, frontendState: state}, Unanswered, now)
		return state.due.Sub(now)
	}
	for n := range maxRetriesPerTenant {
		require.Equal(t, w.times.retryPause, ends("many", 1+n), fmt.Sprint(n))
	}
	require.Equal(t, time.Hour, ends("many", 1+maxRetriesPerTenant))
	require.Equal(t, w.times.retryPause, ends("few", 2+maxRetriesPerTenant), "another tenant")
}
