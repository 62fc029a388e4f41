package gateway

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/heartbeat"
)

// world is what a permit is decided by.
type world struct {
	term            uint64
	holds           bool
	verdict         heartbeat.Verdict
	leased, missing bool
}

func (w *world) Term() (uint64, bool)             { return w.term, w.holds }
func (w *world) Verdict() heartbeat.Verdict       { return w.verdict }
func (w *world) Since(time.Duration) (bool, bool) { return w.leased, w.missing }
func (w *world) permit(keepWhenAlone bool) *permit {
	return w.begun(&permit{keepWhenAlone: keepWhenAlone})
}

// begun is the permit of a gateway that has its lease.
func (w *world) begun(p *permit) *permit {
	p.lease, p.segment, p.changed, p.log = w, w, func() {}, slog.New(slog.DiscardHandler)
	w.take()
	p.begin()
	return p
}

// take gives the gateway a new lease.
func (w *world) take() { w.term, w.holds = w.term+1, true }

// later has the permit's last sure look be longer ago than it is trusted.
func later(p *permit) { p.sure -= trusted }

func TestWithoutTheLeaseAGatewayGoesOnOnlyIfNobodyTakesOver(t *testing.T) {
	for name, c := range map[string]struct {
		verdict       heartbeat.Verdict
		keepWhenAlone bool
		goesOn, keeps bool
	}{
		"another one reaches the API":         {heartbeat.OneReaches, true, false, false},
		"nobody reaches it":                   {heartbeat.NoneReaches, false, true, true},
		"alone, and told to keep":             {heartbeat.Alone, true, true, true},
		"alone, and told to let go":           {heartbeat.Alone, false, false, true},
		"it has not listened for long enough": {heartbeat.Unsure, true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{verdict: c.verdict}
			p := w.permit(c.keepWhenAlone)
			require.True(t, p.decide())
			w.holds = false
			require.False(t, p.may(), "it has to be decided first")
			require.Equal(t, c.goesOn, p.decide())
			require.Equal(t, c.goesOn, p.may())
			require.Equal(t, c.keeps, p.keeps())
			require.False(t, p.holdsLease())
		})
	}
}

func TestWhatWasLetGoComesBackWithTheNextLeaseOnly(t *testing.T) {
	w := &world{verdict: heartbeat.OneReaches}
	p := w.permit(true)
	w.holds = false
	require.False(t, p.decide())
	w.verdict = heartbeat.NoneReaches
	require.False(t, p.decide(), "another one has what it had")
	require.False(t, p.begin())
	w.take()
	require.False(t, p.decide())
	require.False(t, p.may(), "what it answered for has to be let go first")
	require.True(t, p.begin())
	require.True(t, p.may())
	require.True(t, p.decide())
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
		for _, before := range []heartbeat.Verdict{heartbeat.Unsure, heartbeat.Alone} {
			t.Run(name, func(t *testing.T) {
				w := &world{verdict: before, leased: c.leased, missing: c.missing}
				p := w.permit(c.keepWhenAlone)
				w.holds = false
				p.decide()
				later(p)
				w.verdict = heartbeat.NoneReaches
				require.Equal(t, c.goesOn, p.decide())
				require.Equal(t, c.goesOn, p.may())
				require.Equal(t, c.keeps, p.keeps())
			})
		}
	}
}

func TestWhenOthersComeBackAGatewayHasAMomentToComeBackToo(t *testing.T) {
	w := &world{verdict: heartbeat.NoneReaches}
	p := w.permit(false)
	w.holds = false
	require.True(t, p.decide())
	w.verdict = heartbeat.OneReaches
	require.True(t, p.decide())
	w.take()
	require.True(t, p.decide())
	require.True(t, p.holdsLease())

	w.holds = false
	require.False(t, p.decide(), "it was not without a lease together with the other one")
	require.False(t, p.keeps())
	w.take()
	require.True(t, p.begin())
	w.holds, w.verdict = false, heartbeat.NoneReaches
	require.True(t, p.decide())
	w.verdict = heartbeat.OneReaches
	p.sure -= trusted
	require.False(t, p.decide(), "the moment is over")
	require.False(t, p.keeps())
}

func TestALeaseThatIsGotAnewIsGoodForWhatIsHeldOnlyIfTheGatewayWasSureUpToThen(t *testing.T) {
	w := &world{verdict: heartbeat.NoneReaches}
	p := w.permit(true)
	w.holds = false
	require.True(t, p.decide())
	w.take()
	require.True(t, p.may())
	require.False(t, p.holdsLease())
	require.True(t, p.decide())
	require.True(t, p.holdsLease(), "nobody could take over between")

	w.holds, w.verdict = false, heartbeat.Unsure
	require.False(t, p.decide())
	later(p)
	w.take()
	require.False(t, p.may(), "who stood still has a new lease, and what others took over")
	require.False(t, p.decide())
	require.False(t, p.keeps())
	require.True(t, p.begin())
	require.True(t, p.may())
}

func TestTheOnlyGatewayOfASegmentGoesOnWithItsNextLease(t *testing.T) {
	for _, missing := range []bool{false, true} {
		w := &world{verdict: heartbeat.Alone, missing: missing}
		p := w.permit(true)
		w.holds = false
		require.True(t, p.decide())
		later(p)
		w.take()
		require.Equal(t, !missing, p.decide(), "another one may have taken over that was there before")
		require.Equal(t, !missing, p.keeps())
	}
}

func TestWhereOthersAnswerForTheSameAddressesAGatewayThatCannotTellGoesOn(t *testing.T) {
	w := &world{verdict: heartbeat.Unsure, leased: true}
	p := w.begun(&permit{shared: true})
	w.holds = false
	require.True(t, p.decide())
	later(p)
	w.verdict = heartbeat.NoneReaches
	require.True(t, p.decide())
	w.take()
	later(p)
	require.True(t, p.decide())
	require.True(t, p.holdsLease())
}

func TestADecisionToGoOnLastsForAMoment(t *testing.T) {
	w := &world{verdict: heartbeat.NoneReaches}
	p := w.permit(false)
	w.holds = false
	require.True(t, p.decide())
	p.until = clock.Now() - 1
	require.False(t, p.may())
	require.True(t, p.keeps())
}
