package gateway

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/heartbeat"
)

func TestAnAddressThatComesWhileTheLeaseIsAwayIsNotCalledAnnouncedBeforeItIs(t *testing.T) {
	h, b := &hub{}, board{}
	h.take()
	g := h.gateway()
	g.answering.announcer, g.answering.permit.keepWhenAlone = b, true
	before, next := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	g.answering.Add(before)
	elections(t, g)
	require.Equal(t, board{before: true}, b)
	require.True(t, g.announces())

	h.holds = false
	require.True(t, g.answering.permit.decide(), "it is alone, and keeps what it has")
	g.elect(t.Context())
	require.True(t, g.announces())
	g.answering.Add(next)
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
	g.served = true
	g.answering.Add(netip.MustParseAddr("203.0.113.1"))
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
