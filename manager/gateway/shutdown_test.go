package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/gateway/report"
	"kubelb.k8c.io/manager/membership"
)

// neighbours are fellow gateways, as their Leases say.
type neighbours []membership.Other

func (neighbours) Peers() ([]election.Peer, []string, bool) { return nil, nil, true }
func (n neighbours) Others() []membership.Other             { return n }
func (neighbours) Say(membership.Said)                      {}
func (neighbours) Told(election.View) bool                  { return true }

// looks in a row without a connection end a shutdown.
const looks = 3

// leaver is a gateway that has served an address and is told to end.
type leaver struct {
	*Gateway
	address netip.Addr
	ended   chan struct{}
}

func leave(t *testing.T, o Options, fellows neighbours) *leaver {
	o.Name, o.Announcer, o.Log = "g", board{}, slog.New(slog.DiscardHandler)
	l := &leaver{Gateway: New(o, nil, nil), address: netip.MustParseAddr("203.0.113.1"), ended: make(chan struct{})}
	l.served = true
	l.noteReadiness()
	l.answering.member = fellows
	l.answering.answers[l.address] = true
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		l.Shutdown(ctx)
		close(l.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-l.ended
	})
	return l
}

// hears has the gateway take the event of being told.
func (l *leaver) hears() *leaver {
	(<-l.events)(l.Gateway)
	return l
}

// looks has the gateway count what is left of its connections, and judge by that.
func (l *leaver) looks(left uint64) {
	l.drain.Shutdown.NoteConnections(l.answering.answered() > 0, left)
	l.drain.Shutdown.Finish(l.isReplaced)
}

func (l *leaver) requireEnd(t *testing.T) {
	t.Helper()
	select {
	case <-l.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func (l *leaver) requireNoEnd(t *testing.T) {
	t.Helper()
	select {
	case <-l.ended:
		t.Fatal("it has ended")
	case <-time.After(20 * time.Millisecond):
	}
}

func TestAGatewayThatIsToldToEndWaitsUntilOthersHaveItsAddressesAndItsConnectionsHaveEnded(t *testing.T) {
	l := leave(t, Options{DrainTimeout: time.Hour}, neighbours{{Name: "other", Present: true, Serves: true}}).hears()
	l.drain.Update(time.Now(), l.isReplaced)
	require.True(t, l.drain.Draining(), "it says that it leaves")
	for range 2 * looks {
		l.looks(0)
	}
	l.requireNoEnd(t) // It still answers for an address.
	l.answering.answers[l.address] = false
	for range 2 * looks {
		l.looks(7)
	}
	l.looks(0)
	l.looks(1) // A client that has just heard.
	for range looks - 1 {
		l.looks(0)
	}
	l.requireNoEnd(t)
	l.looks(0)
	l.requireEnd(t)
}

func TestAGatewayThatIsToldToEndWaitsNoLongerThanItMay(t *testing.T) {
	l := leave(t, Options{DrainTimeout: 50 * time.Millisecond}, neighbours{{Name: "other", Present: true, Serves: true}}).hears()
	l.answering.answers[l.address] = false
	l.looks(1)
	l.requireEnd(t)
}

func TestAGatewayThatNobodyReplacesEndsAtOnce(t *testing.T) {
	for name, fellows := range map[string]neighbours{
		"alone":                            nil,
		"the other leaves, too":            {{Name: "other", Present: true, Leaving: true, Serves: true}},
		"the other has failed":             {{Name: "other", Serves: true}},
		"the other does not work yet":      {{Name: "other", Present: true}},
		"the pool does not choose another": {{Name: "else", Present: true, Serves: true}},
	} {
		t.Run(name, func(t *testing.T) {
			l := leave(t, Options{DrainTimeout: time.Hour}, fellows).hears()
			only := &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "1"}}
			ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
			require.NoError(t, err)
			l.selection.SetPool("pool", ranges, only)
			l.selection.SetGateway("g", only.MatchLabels)
			l.selection.SetGateway("other", only.MatchLabels)
			l.drain.Shutdown.Finish(l.isReplaced)
			l.requireEnd(t)
		})
	}
}

func TestAGatewayThatIsHeardOfOneFamilyReplacesAnotherForThatFamilyOnly(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
	var own mute
	replaced := func(others neighbours, addresses ...netip.Addr) bool {
		g := New(Options{Name: "g", Announcer: own, Log: slog.New(slog.DiscardHandler)}, nil, nil)
		g.answering.member = others
		for _, a := range addresses {
			g.answering.answers[a] = true
		}
		return g.isReplaced()
	}
	only4 := membership.Other{Name: "four", Present: true, Serves: true, Unheard: membership.Unheard{IPv6: true}}
	only6 := membership.Other{Name: "six", Present: true, Serves: true, Unheard: membership.Unheard{IPv4: true}}
	require.True(t, replaced(neighbours{only4}, v4))
	require.False(t, replaced(neighbours{only4}, v4, v6), "nobody would hear of the IPv6 address")
	require.False(t, replaced(neighbours{only6}, v4, v6))
	require.True(t, replaced(neighbours{only4, only6}, v4, v6))

	own.why = map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}
	require.True(t, replaced(neighbours{only4}, v4, v6), "nobody hears of the IPv6 address now, either")
	require.False(t, replaced(neighbours{only6}, v4, v6))
}

func TestAGatewaySaysForWhichFamiliesItCannotTakeOver(t *testing.T) {
	o := Options{Name: "g", Announcer: mute{why: map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off"}}, Log: slog.New(slog.DiscardHandler)}
	require.Equal(t, membership.Unheard{IPv6: true}, New(o, nil, nil).unheardFamilies())
	o.Elects = true
	g := New(o, nil, nil)
	require.Equal(t, membership.Unheard{IPv4: true, IPv6: true}, g.unheardFamilies(), "it stands for neither yet")
	g.answering.families[ipam.IPv4].stood = true
	require.Equal(t, membership.Unheard{IPv6: true}, g.unheardFamilies())
}

func TestAGatewayEndsAtOnceThatIsNotToWaitOrHasNotServed(t *testing.T) {
	leave(t, Options{}, neighbours{{Name: "other", Present: true, Serves: true}}).requireEnd(t)
	g := New(Options{Name: "g", Announcer: board{}, DrainTimeout: time.Hour, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.Shutdown(t.Context())
	require.True(t, g.drain.Shutdown.Told())
}

func TestAGatewayThatHasDrainedSaysThatOthersAreThereOnlyIfItKnowsSo(t *testing.T) {
	const let, all, notAll = "it answers for no address any more; ", "all of its addresses have another gateway that works", "not all of its addresses are known to have another gateway that works"
	works := membership.Other{Name: "other", Present: true, Serves: true}
	for name, c := range map[string]struct {
		fellows fellows
		rack    string
		others  string
	}{
		"another one works":                       {neighbours{works}, "1", all},
		"another one works, and is not chosen":    {neighbours{works}, "2", notAll},
		"another one drains":                      {neighbours{{Name: "other", Present: true, Serves: true, Leaving: true}}, "1", notAll},
		"there is no other one":                   {neighbours{}, "1", notAll},
		"without a Lease nobody knows of another": {nil, "1", notAll},
	} {
		t.Run(name, func(t *testing.T) {
			g := New(Options{Name: "g", Announcer: board{}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
			ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
			require.NoError(t, err)
			g.selection.SetPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "1"}})
			g.selection.SetGateway("other", map[string]string{"rack": c.rack})
			g.answering.member = c.fellows
			address := netip.MustParseAddr("203.0.113.1")
			g.answering.answers[address] = true
			require.Equal(t, metav1.ConditionFalse, report.Drained(g.answering.answered(), g.isReplaced()).Status)
			g.answering.answers[address] = false
			drained := report.Drained(g.answering.answered(), g.isReplaced())
			require.Equal(t, metav1.ConditionTrue, drained.Status)
			require.Equal(t, let+c.others+"; connections that it has go on", drained.Message)
		})
	}
}
