package watchdog

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	ofTheDataplane = "connections get no answer; its nodes answer the gateway itself, so that its dataplane, or a firewall of its host, is the reason"
	ofTheNodes     = "connections get no answer; its nodes refuse the gateway itself, too, as they do if the Service has no ready pod"
)

// desk is a watchdog whose tries a test ends itself.
type desk struct {
	*Watchdog
	now time.Time
}

func newDesk() *desk {
	d := &desk{New(Options{Every: time.Minute, Tell: func(context.Context, Report) {}}), time.Now()}
	d.asks = make(chan question, waitingRoom)
	return d
}

func port(number uint16) Frontend {
	return Frontend{AddrPort: netip.AddrPortFrom(flows()[0].frontend.Addr(), number), Tenant: "a", Endpoints: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.11:30080")}}
}

// tried has tries of a port end, five seconds after one another.
func (d *desk) tried(number uint16, outcomes ...Outcome) {
	is := d.watched[port(number).AddrPort]
	for _, o := range outcomes {
		d.now = d.now.Add(5 * time.Second)
		d.end(&try{flow: flow{frontend: is.AddrPort}, of: is}, o, d.now)
	}
}

// hears has the nodes of a port be heard, of which some are silent.
func (d *desk) hears(number uint16, silent ...string) {
	d.note(hearing{of: d.watched[port(number).AddrPort], at: d.now, asked: 1, silent: silent, refused: len(silent) > 0})
}

func failed(message string, at Frontend) []Failure {
	return []Failure{{AddrPort: at.AddrPort, Message: message, NodesAnswer: message == ofTheDataplane}}
}

func TestAFrontendThatFailedBeforeFailsUntilItsTriesTellOtherwise(t *testing.T) {
	d, is := newDesk(), port(80)
	is.Former = ofTheDataplane
	d.want([]Frontend{is, port(81)}, d.now)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, is), Untried: 1}, d.report(), "nobody has seen that it ended")
	d.tried(80, Unanswered)
	require.Equal(t, failed(ofTheDataplane, is), d.report().Failures, "its nodes are still to be asked")
	d.hears(80)
	d.tried(80, Unanswered, Unanswered)
	require.Equal(t, failed(ofTheDataplane, is), d.report().Failures, "tries arrived before, though none of this process was answered")
	d.tried(81, Unanswered, Unanswered, Unanswered)
	d.hears(81)
	require.Len(t, d.report().Failures, 2, "another port's fault is said, too")
	d.tried(80, Answered, Answered)
	require.Len(t, d.report().Failures, 2)
	d.tried(80, Answered)
	require.Equal(t, failed(ofTheDataplane, port(81)), d.report().Failures)
	require.Equal(t, 1, d.report().Answered)
}

func TestAFrontendThatFailedByItsNodesMayNowBeOneThatTriesDoNotReach(t *testing.T) {
	d, is := newDesk(), port(80)
	is.Former = ofTheNodes
	d.want([]Frontend{is}, d.now)
	d.tried(80, Unanswered)
	d.hears(80, "198.51.100.11:30080 (refused)")
	require.Equal(t, failed(ofTheNodes, is), d.report().Failures)
	d.tried(80, Unanswered, Unanswered)
	d.hears(80)
	require.Equal(t, Report{Untried: 1}, d.report(), "no try was ever answered, as far as anybody knows")
}

func TestAFrontendThatFailedAtAnotherGatewayFailsUntilItsFirstTryHere(t *testing.T) {
	const elsewhere = "at gateway g2, which answered for the address before: " + ofTheDataplane
	d, is := newDesk(), port(80)
	is.Former, is.Moved = elsewhere, true
	require.Empty(t, d.report().Failures)
	d.want([]Frontend{is, port(81)}, d.now)
	fails := []Failure{{AddrPort: is.AddrPort, Message: elsewhere}}
	require.Equal(t, Report{Failures: fails, Untried: 1}, d.report(), "what its nodes do is not known here")
	d.want([]Frontend{port(80), port(81)}, d.now)
	d.tried(80, Unanswered)
	require.Equal(t, fails, d.report().Failures, "its nodes are still to be asked")
	d.hears(80)
	require.Equal(t, Report{Untried: 2}, d.report(), "tries may not arrive at all here, though they did there")
	d.tried(81, Unanswered, Unanswered, Unanswered)
	d.hears(81)
	require.Equal(t, Report{Untried: 2}, d.report(), "that says nothing of other ports")
	d.tried(81, Answered, Answered, Answered)
	require.Equal(t, failed(ofTheDataplane, is), d.report().Failures, "tries do arrive, and this one was not answered")

	d = newDesk()
	d.want([]Frontend{port(80)}, d.now)
	d.tried(80, Answered)
	d.want([]Frontend{is}, d.now)
	require.Equal(t, fails, d.report().Failures, "it was answered before it failed there")
	d.forget(t.Context(), errors.New("kubelb-watch is down"))
	require.Equal(t, fails, d.told.Failures)
	d.want([]Frontend{port(80)}, d.now)
	d.tried(80, Answered, Answered, Answered)
	require.Equal(t, Report{Answered: 1}, d.report())
}

func TestWhatSomeConnectionsMetIsOverAfterMoreTries(t *testing.T) {
	d, is := newDesk(), port(80)
	is.Former = "some connections get no answer"
	d.want([]Frontend{is}, d.now)
	d.tried(80, Answered, Answered, Answered)
	require.Len(t, d.report().Failures, 1, "one of several nodes may fail")
	d.tried(80, Answered, Answered, Answered, Answered, Answered)
	require.Equal(t, Report{Answered: 1}, d.report())
}

func TestAFailureOutlastsTheInterfacesThatFoundIt(t *testing.T) {
	d := newDesk()
	d.want([]Frontend{port(80), port(81), port(82)}, d.now)
	d.tried(80, Answered, Unanswered, Unanswered, Unanswered)
	d.hears(80)
	d.tried(81, Answered)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80)), Answered: 1, Untried: 1}, d.report())
	for range 2 {
		d.forget(t.Context(), errors.New("kubelb-watch is down"))
		require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80)), Untried: 2, Problem: "kubelb-watch is down"}, d.told)
	}
	d.want([]Frontend{port(80), port(81), port(82)}, d.now)
	d.tried(80, Unanswered)
	d.hears(80)
	require.Equal(t, failed(ofTheDataplane, port(80)), d.report().Failures, "it is not forgotten that tries arrived")
}

func TestAFrontendThatNobodyReachesHereKeepsItsFailureAndIsNotTried(t *testing.T) {
	d := newDesk()
	d.want([]Frontend{port(80), port(81)}, d.now)
	d.tried(80, Answered, Unanswered, Unanswered, Unanswered)
	d.hears(80)
	d.tried(81, Answered)
	on := &try{of: d.watched[port(80).AddrPort]}
	paused := []Frontend{port(80), port(81)}
	paused[0].Paused, paused[1].Paused = true, true
	d.want(paused, d.now)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80))}, d.report(), "of the other one nothing is known that lasts")
	d.end(on, Unanswered, d.now)
	d.lane = &lane{sources: []netip.Addr{client4}}
	require.NoError(t, d.begin(d.now.Add(time.Hour)), "nothing is sent")
	require.Empty(t, d.tries)

	d.want([]Frontend{port(80), port(81)}, d.now)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80)), Untried: 1}, d.report())
	d.tried(80, Answered, Answered, Answered)
	require.Equal(t, Report{Answered: 1, Untried: 1}, d.report())

	d.tried(80, Unanswered, Unanswered, Unanswered)
	d.hears(80)
	another := port(80)
	another.Tenant, another.Paused = "b", true
	d.want([]Frontend{another}, d.now)
	require.Equal(t, Report{}, d.report(), "it is another tenant's now")
}

func TestAFrontendOfWhichItIsOnlyKnownThatItMayFailIsWellAfterOneTry(t *testing.T) {
	const says = "it may be one of the ports that failed at gateway g2"
	doubted := func(number uint16) Frontend {
		f := port(number)
		f.Former, f.Moved, f.Doubted = says, true, true
		return f
	}
	may := func(numbers ...uint16) (all []Failure) {
		for _, n := range numbers {
			all = append(all, Failure{AddrPort: port(n).AddrPort, Message: says, Doubted: true})
		}
		return all
	}
	d := newDesk()
	d.want([]Frontend{doubted(80), doubted(81), port(82)}, d.now)
	require.Equal(t, Report{Failures: may(80, 81), Untried: 3}, d.report())
	d.tried(82, Answered, Answered)
	d.tried(80, Answered)
	require.Equal(t, Report{Failures: may(81), Answered: 2, Untried: 1}, d.report())
	require.False(t, d.watched[port(80).AddrPort].doubted)
	d.tried(81, Unanswered)
	require.Equal(t, may(81), d.report().Failures, "one try does not tell that it fails, and none that it does not")
	d.forget(t.Context(), errors.New("kubelb-watch is down"))
	require.Equal(t, may(81), d.told.Failures)
	paused := doubted(81)
	paused.Paused = true
	d.want([]Frontend{port(80), paused, port(82)}, d.now)
	require.Equal(t, may(81), d.report().Failures, "clients do not reach it here")

	d.want([]Frontend{port(80), port(81), port(82)}, d.now)
	d.tried(82, Answered)
	d.tried(81, Unanswered, Unanswered, Unanswered)
	require.Equal(t, may(81), d.report().Failures, "its nodes are still to be asked")
	d.hears(81)
	require.Equal(t, failed(ofTheDataplane, port(81)), d.report().Failures)
	d.want([]Frontend{doubted(81)}, d.now)
	require.Equal(t, failed(ofTheDataplane, port(81)), d.report().Failures, "what is known says more")

	d = newDesk()
	d.want([]Frontend{doubted(80)}, d.now)
	f := port(80)
	f.Former = ofTheNodes
	d.want([]Frontend{f}, d.now)
	require.Equal(t, failed(ofTheNodes, f), d.report().Failures, "so does what another gateway saw")
}

// A frontend whose failure was handed over may be well before anything is told of it.
func TestAReportSaysWhichListItFollows(t *testing.T) {
	var told []Report
	d := newDesk()
	d.options.Tell = func(_ context.Context, r Report) { told = append(told, r) }
	d.publish(t.Context(), d.now)
	d.want([]Frontend{port(80)}, d.now)
	d.publish(t.Context(), d.now.Add(d.times.countEvery))
	require.Equal(t, []Report{{Untried: 1}}, told)
	soon := d.now.Add(d.times.countEvery + d.times.tellEvery)
	d.follow(List{Frontends: []Frontend{port(80)}, Number: 1}, d.now)
	d.publish(t.Context(), soon)
	require.Equal(t, Report{Listed: 1, Untried: 1}, told[1], "what that list handed over is answered already, and nothing else differs")
	d.want([]Frontend{port(80)}, d.now)
	d.publish(t.Context(), soon.Add(time.Hour))
	require.Len(t, told, 2)
}
