package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce/announcetest"
	"kubelb.k8c.io/manager/gateway/ownership"
	"kubelb.k8c.io/manager/gateway/report"
	"kubelb.k8c.io/manager/membership"
)

// requiredIdleCounts counts without a connection end a shutdown.
const requiredIdleCounts = 3

// shuttingDown is a gateway that has served an address and is told to end.
type shuttingDown struct {
	*Gateway
	address netip.Addr
	ended   chan struct{}
}

func shutDown(t *testing.T, o Options, peers fixedPeers) *shuttingDown {
	o.Name, o.Announcer, o.Member, o.Log = "g", announcetest.Recorder{}, peers, slog.New(slog.DiscardHandler)
	l := &shuttingDown{Gateway: New(o, nil, nil), address: netip.MustParseAddr("203.0.113.1"), ended: make(chan struct{})}
	l.served = true
	l.updateReadiness()
	l.ownership.Add(l.address)
	l.elect(t.Context())
	require.EqualValues(t, 1, l.ownership.AnsweredCount())
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

// handleEvent makes the gateway handle the event of Shutdown.
func (l *shuttingDown) handleEvent() *shuttingDown {
	(<-l.events)(l.Gateway)
	return l
}

// count reports the number of remaining connections.
func (l *shuttingDown) count(left uint64) {
	l.drain.Shutdown.NoteConnections(l.ownership.AnsweredCount() > 0, left)
	l.drain.Shutdown.FinishIfDone(l.ownership.IsReplaced)
}

func (l *shuttingDown) requireEnd(t *testing.T) {
	t.Helper()
	select {
	case <-l.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func (l *shuttingDown) requireNoEnd(t *testing.T) {
	t.Helper()
	select {
	case <-l.ended:
		t.Fatal("it has ended")
	case <-time.After(20 * time.Millisecond):
	}
}

func TestAShutdownWaitsUntilAddressesAreWithdrawnAndConnectionsHaveEnded(t *testing.T) {
	l := shutDown(t, Options{DrainOptions: DrainOptions{DrainTimeout: time.Hour}}, fixedPeers{{Name: "other", Active: true, CanTakeOver: true}}).handleEvent()
	l.drain.Update(time.Now(), l.ownership.IsReplaced)
	require.True(t, l.drain.Draining(), "it publishes that it drains")
	for range 2 * requiredIdleCounts {
		l.count(0)
	}
	l.requireNoEnd(t) // it still answers for an address
	l.ownership.Remove(l.address)
	for range 2 * requiredIdleCounts {
		l.count(7)
	}
	l.count(0)
	l.count(1) // a late client
	for range requiredIdleCounts - 1 {
		l.count(0)
	}
	l.requireNoEnd(t)
	l.count(0)
	l.requireEnd(t)
}

func TestAShutdownWaitsNoLongerThanTheDrainTimeout(t *testing.T) {
	l := shutDown(t, Options{DrainOptions: DrainOptions{DrainTimeout: 50 * time.Millisecond}}, fixedPeers{{Name: "other", Active: true, CanTakeOver: true}}).handleEvent()
	l.ownership.Remove(l.address)
	l.count(1)
	l.requireEnd(t)
}

func TestAShutdownWithoutAReplacementEndsAtOnce(t *testing.T) {
	for name, peers := range map[string]fixedPeers{
		"alone":                                   nil,
		"the other one drains, too":               {{Name: "other", Active: true, Draining: true, CanTakeOver: true}},
		"the other has failed":                    {{Name: "other", CanTakeOver: true}},
		"the other does not work yet":             {{Name: "other", Active: true}},
		"the AddressPool does not select another": {{Name: "else", Active: true, CanTakeOver: true}},
	} {
		t.Run(name, func(t *testing.T) {
			l := shutDown(t, Options{DrainOptions: DrainOptions{DrainTimeout: time.Hour}}, peers).handleEvent()
			only := &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "1"}}
			ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
			require.NoError(t, err)
			l.selection.SetAddressPool("pool", ranges, only)
			l.selection.SetGateway("g", only.MatchLabels)
			l.selection.SetGateway("other", only.MatchLabels)
			l.drain.Shutdown.FinishIfDone(l.ownership.IsReplaced)
			l.requireEnd(t)
		})
	}
}

func TestAShutdownWithoutADrainTimeoutOrBeforeServingEndsAtOnce(t *testing.T) {
	shutDown(t, Options{}, fixedPeers{{Name: "other", Active: true, CanTakeOver: true}}).requireEnd(t)
	g := New(Options{Name: "g", AnnounceOptions: AnnounceOptions{Announcer: announcetest.Recorder{}}, DrainOptions: DrainOptions{DrainTimeout: time.Hour}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.Shutdown(t.Context())
	require.True(t, g.drain.Shutdown.Requested())
}

func TestADrainedGatewayReportsAReplacementOnlyIfItKnowsOne(t *testing.T) {
	const withdrawn, all, notAll = "the gateway answers for no address any more; ", "other gateways answer for all its addresses", "it is not known of all its addresses that another gateway answers for them"
	works := membership.Peer{Name: "other", Active: true, CanTakeOver: true}
	for name, c := range map[string]struct {
		peers  Member
		rack   string
		others string
	}{
		"another one works":                       {fixedPeers{works}, "1", all},
		"another one works, and is not selected":  {fixedPeers{works}, "2", notAll},
		"another one drains":                      {fixedPeers{{Name: "other", Active: true, CanTakeOver: true, Draining: true}}, "1", notAll},
		"there is no other one":                   {fixedPeers{}, "1", notAll},
		"without a Lease the peers are not known": {nil, "1", notAll},
	} {
		t.Run(name, func(t *testing.T) {
			g := New(Options{Name: "g", AnnounceOptions: AnnounceOptions{Announcer: announcetest.Recorder{}}, PeerOptions: PeerOptions{Member: c.peers}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
			ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
			require.NoError(t, err)
			g.selection.SetAddressPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "1"}})
			g.selection.SetGateway("other", map[string]string{"rack": c.rack})
			address := netip.MustParseAddr("203.0.113.1")
			g.selection.SetGateway("g", map[string]string{"rack": "1"})
			g.ownership.Add(address)
			g.ownership.Elect(t.Context(), g.driver, ownership.State{Served: true})
			require.Equal(t, metav1.ConditionFalse, report.Drained(g.ownership.AnsweredCount(), g.ownership.IsReplaced()).Status)
			g.ownership.Elect(t.Context(), g.driver, ownership.State{Served: true, WithdrawDelayOver: true})
			drained := report.Drained(g.ownership.AnsweredCount(), g.ownership.IsReplaced())
			require.Equal(t, metav1.ConditionTrue, drained.Status)
			require.Equal(t, withdrawn+c.others+"; existing connections go on", drained.Message)
		})
	}
}
