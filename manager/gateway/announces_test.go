package gateway

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/heartbeat"
)

// serving has the gateway's dataplane hold a frontend of the address.
func serving(g *Gateway, address netip.Addr) {
	g.note(model.Delta{UpsertFrontends: []model.Frontend{{FrontendKey: model.FrontendKey{VIP: address, Protocol: model.TCP, Port: 80}}}}, nil)
}

func TestAnAddressThatComesWhileTheLeaseIsAwayIsNotCalledAnnouncedBeforeItIs(t *testing.T) {
	h, b := &hub{}, board{}
	h.take()
	g := h.gateway()
	g.options.Announcer, g.answering.permit.keepWhenAlone = b, true
	before, next := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	serving(g, before)
	elections(t, g)
	require.Equal(t, board{before: true}, b)
	require.True(t, g.announces())

	h.holds = false
	require.True(t, g.answering.permit.decide(), "it is alone, and keeps what it has")
	g.elect(t.Context())
	require.True(t, g.announces())
	serving(g, next)
	g.elect(t.Context())
	require.Equal(t, board{before: true}, b, "it takes nothing new")
	require.False(t, g.announces())

	h.holds = true
	elections(t, g)
	require.Equal(t, board{before: true, next: true}, b)
	require.True(t, g.announces())
}

func TestAGatewayThatMayNotAnswerDoesNotSayThatItAnnounced(t *testing.T) {
	w := &world{verdict: heartbeat.OneReaches}
	g := New(Options{Name: "g", Announcer: board{}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.served, g.answering.permit = true, w.permit(true)
	g.elect(t.Context())
	require.True(t, g.announces())
	w.holds = false
	require.False(t, g.answering.permit.decide())
	g.elect(t.Context())
	require.False(t, g.announces())
	require.Empty(t, g.silent(time.Now()), "the reason is said later, since it may be about to begin again")
}

func TestADecisionThatWasGivenUpHasAnnouncedNothing(t *testing.T) {
	b := board{}
	g := New(Options{Name: "g", Announcer: b, Elects: true, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.served, g.host = true, &host{}
	serving(g, netip.MustParseAddr("203.0.113.1"))
	mine := func(netip.Addr) (string, bool) { return "g", true }
	may := func(netip.Addr) bool { return true }
	require.False(t, g.decide(t.Context(), "view", mine, func(netip.Addr) bool {
		return g.decide(t.Context(), "view", mine, may) // another decision, while the backend was called
	}))
	require.Empty(t, b)
	require.False(t, g.announces())
	require.True(t, g.decide(t.Context(), "view", mine, may))
	require.Len(t, b, 1)
	require.True(t, g.announces())
}

func TestWhoAnnouncesIsToldWhoseAnAddressIs(t *testing.T) {
	g, _ := teller(t, takesAll)
	is, address := map[netip.Addr]string{}, ports("a", 1, 1).UpsertFrontends[0].VIP
	g.options.SetTenant = func(a netip.Addr, tenant string) { is[a] = tenant }
	for _, tenant := range []string{"a", "b"} {
		g.take(ports(tenant, 1, 2), 0)
		require.NoError(t, g.tell(t.Context()))
		require.Equal(t, map[netip.Addr]string{address: tenant}, is)
	}
	var gone model.Delta
	for _, f := range ports("b", 1, 2).UpsertFrontends {
		gone.DeleteFrontends = append(gone.DeleteFrontends, f.FrontendKey)
	}
	g.withdraw(gone)
	require.Empty(t, is[address])
}
