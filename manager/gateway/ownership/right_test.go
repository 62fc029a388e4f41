package ownership

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/heartbeat"
)

// world is what a right is decided by.
type world struct {
	term            uint64
	holds           bool
	verdict         heartbeat.PeerState
	leased, missing bool
}

func (w *world) LeaseNumber() (uint64, bool)           { return w.term, w.holds }
func (w *world) PeerState() heartbeat.PeerState        { return w.verdict }
func (w *world) PeersSince(time.Duration) (bool, bool) { return w.leased, w.missing }
func (w *world) right(keepWhenAlone bool) *Right {
	return w.begun(RightOptions{KeepWhenAlone: keepWhenAlone})
}

// begun is the right of a gateway that has its lease.
func (w *world) begun(o RightOptions) *Right {
	o.Lease, o.Segment, o.Changed, o.Log = w, w, func() {}, slog.New(slog.DiscardHandler)
	r := NewRight(o)
	w.take()
	r.acquire()
	return r
}

// take gives the gateway a new lease.
func (w *world) take() { w.term, w.holds = w.term+1, true }

// later has the right's last sure look be longer ago than it is trusted.
func later(r *Right) { r.safeAt -= trusted }

func TestWithoutTheLeaseAGatewayGoesOnOnlyIfNobodyTakesOver(t *testing.T) {
	for name, c := range map[string]struct {
		verdict       heartbeat.PeerState
		keepWhenAlone bool
		goesOn, keeps bool
	}{
		"another one reaches the API":         {heartbeat.PeerReachesAPI, true, false, false},
		"nobody reaches it":                   {heartbeat.PeersWithoutAPI, false, true, true},
		"alone, and told to keep":             {heartbeat.NoPeer, true, true, true},
		"alone, and told to let go":           {heartbeat.NoPeer, false, false, true},
		"it has not listened for long enough": {heartbeat.Unknown, true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{verdict: c.verdict}
			r := w.right(c.keepWhenAlone)
			require.True(t, r.decide())
			w.holds = false
			require.False(t, r.MayAnswer(), "it has to be decided first")
			require.Equal(t, c.goesOn, r.decide())
			require.Equal(t, c.goesOn, r.MayAnswer())
			require.Equal(t, c.keeps, r.ownsAddresses())
			require.False(t, r.holdsLease())
		})
	}
}

func TestWhatWasLetGoComesBackWithTheNextLeaseOnly(t *testing.T) {
	w := &world{verdict: heartbeat.PeerReachesAPI}
	r := w.right(true)
	w.holds = false
	require.False(t, r.decide())
	w.verdict = heartbeat.PeersWithoutAPI
	require.False(t, r.decide(), "another one has what it had")
	require.False(t, r.acquire())
	w.take()
	require.False(t, r.decide())
	require.False(t, r.MayAnswer(), "what it answered for has to be let go first")
	require.True(t, r.acquire())
	require.True(t, r.MayAnswer())
	require.True(t, r.decide())
}

func TestAGatewayThatCouldNotTellGoesOnOnceItIsSureThatNobodyTookOver(t *testing.T) {
	for name, c := range map[string]struct {
		leased, missing, keepWhenAlone bool
		goesOn, keeps                  bool
	}{
		"nobody had a lease":                               {false, false, false, true, true},
		"one had a lease":                                  {true, false, true, false, false},
		"one is not heard any more":                        {false, true, false, false, true},
		"one is not heard any more, and it may keep alone": {false, true, true, true, true},
	} {
		for _, before := range []heartbeat.PeerState{heartbeat.Unknown, heartbeat.NoPeer} {
			t.Run(name, func(t *testing.T) {
				w := &world{verdict: before, leased: c.leased, missing: c.missing}
				r := w.right(c.keepWhenAlone)
				w.holds = false
				r.decide()
				later(r)
				w.verdict = heartbeat.PeersWithoutAPI
				require.Equal(t, c.goesOn, r.decide())
				require.Equal(t, c.goesOn, r.MayAnswer())
				require.Equal(t, c.keeps, r.ownsAddresses())
			})
		}
	}
}

func TestWhenOthersComeBackAGatewayHasAMomentToComeBackToo(t *testing.T) {
	w := &world{verdict: heartbeat.PeersWithoutAPI}
	r := w.right(false)
	w.holds = false
	require.True(t, r.decide())
	w.verdict = heartbeat.PeerReachesAPI
	require.True(t, r.decide())
	w.take()
	require.True(t, r.decide())
	require.True(t, r.holdsLease())

	w.holds = false
	require.False(t, r.decide(), "it was not without a lease together with the other one")
	require.False(t, r.ownsAddresses())
	w.take()
	require.True(t, r.acquire())
	w.holds, w.verdict = false, heartbeat.PeersWithoutAPI
	require.True(t, r.decide())
	w.verdict = heartbeat.PeerReachesAPI
	r.safeAt -= trusted
	require.False(t, r.decide(), "the moment is over")
	require.False(t, r.ownsAddresses())
}

func TestALeaseThatIsGotAnewIsGoodForWhatIsHeldOnlyIfTheGatewayWasSureUpToThen(t *testing.T) {
	w := &world{verdict: heartbeat.PeersWithoutAPI}
	r := w.right(true)
	w.holds = false
	require.True(t, r.decide())
	w.take()
	require.True(t, r.MayAnswer())
	require.False(t, r.holdsLease())
	require.True(t, r.decide())
	require.True(t, r.holdsLease(), "nobody could take over between")

	w.holds, w.verdict = false, heartbeat.Unknown
	require.False(t, r.decide())
	later(r)
	w.take()
	require.False(t, r.MayAnswer(), "who stood still has a new lease, and what others took over")
	require.False(t, r.decide())
	require.False(t, r.ownsAddresses())
	require.True(t, r.acquire())
	require.True(t, r.MayAnswer())
}

func TestTheOnlyGatewayOfASegmentGoesOnWithItsNextLease(t *testing.T) {
	for _, missing := range []bool{false, true} {
		w := &world{verdict: heartbeat.NoPeer, missing: missing}
		r := w.right(true)
		w.holds = false
		require.True(t, r.decide())
		later(r)
		w.take()
		require.Equal(t, !missing, r.decide(), "another one may have taken over that was there before")
		require.Equal(t, !missing, r.ownsAddresses())
	}
}

func TestWhereOthersAnswerForTheSameAddressesAGatewayThatCannotTellGoesOn(t *testing.T) {
	w := &world{verdict: heartbeat.Unknown, leased: true}
	r := w.begun(RightOptions{Shared: true})
	w.holds = false
	require.True(t, r.decide())
	later(r)
	w.verdict = heartbeat.PeersWithoutAPI
	require.True(t, r.decide())
	w.take()
	later(r)
	require.True(t, r.decide())
	require.True(t, r.holdsLease())
}

func TestADecisionToGoOnLastsForAMoment(t *testing.T) {
	w := &world{verdict: heartbeat.PeersWithoutAPI}
	r := w.right(false)
	w.holds = false
	require.True(t, r.decide())
	r.until = clock.Now() - 1
	require.False(t, r.MayAnswer())
	require.True(t, r.ownsAddresses())
}
