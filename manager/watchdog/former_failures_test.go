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
	ofTheDataplane = "connections get no answer; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host"
	ofTheNodes     = "connections get no answer; its nodes refuse the gateway itself, too, as they do if the Service has no ready pod"
)

// manual is a watchdog whose tries are ended by the test.
type manual struct {
	*Watchdog
	now time.Time
}

func newManual() *manual {
	m := &manual{New(Options{Interval: time.Minute, OnReport: func(context.Context, Report) {}}), time.Now()}
	m.requests = make(chan endpointRequest, queueLength)
	return m
}

func port(number uint16) Frontend {
	return Frontend{AddrPort: netip.AddrPortFrom(flows()[0].frontend.Addr(), number), Tenant: "a", Endpoints: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.11:30080")}}
}

// finishTries ends tries of a port, five seconds after one another.
func (m *manual) finishTries(number uint16, outcomes ...Outcome) {
	state := m.frontends[port(number).AddrPort]
	for _, o := range outcomes {
		m.now = m.now.Add(5 * time.Second)
		m.finish(&try{flow: flow{frontend: state.AddrPort}, frontendState: state}, o, m.now)
	}
}

// setNodes sets the result of the host's own connections to the node of a port.
func (m *manual) setNodes(number uint16, silent ...string) {
	m.setEndpoints(endpointResult{frontendState: m.frontends[port(number).AddrPort], at: m.now, count: 1, silent: silent, refused: len(silent) > 0})
}

func failed(message string, at Frontend) []Failure {
	return []Failure{{AddrPort: at.AddrPort, Message: message, NodesAnswer: message == ofTheDataplane}}
}

func TestAFormerFailureLastsUntilTriesAreAnswered(t *testing.T) {
	m, is := newManual(), port(80)
	is.Former = ofTheDataplane
	m.setFrontends([]Frontend{is, port(81)}, m.now)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, is), Untried: 1}, m.newReport(), "no try has shown that it works")
	m.finishTries(80, Unanswered)
	require.Equal(t, failed(ofTheDataplane, is), m.newReport().Failures, "its nodes were not asked yet")
	m.setNodes(80)
	m.finishTries(80, Unanswered, Unanswered)
	require.Equal(t, failed(ofTheDataplane, is), m.newReport().Failures, "tries arrived before, although no try of this process was answered")
	m.finishTries(81, Unanswered, Unanswered, Unanswered)
	m.setNodes(81)
	require.Len(t, m.newReport().Failures, 2, "the failure of another port is reported, too")
	m.finishTries(80, Answered, Answered)
	require.Len(t, m.newReport().Failures, 2)
	m.finishTries(80, Answered)
	require.Equal(t, failed(ofTheDataplane, port(81)), m.newReport().Failures)
	require.Equal(t, 1, m.newReport().Answered)
}

func TestAFormerFailureOfNodesDoesNotShowThatTriesArrive(t *testing.T) {
	m, is := newManual(), port(80)
	is.Former = ofTheNodes
	m.setFrontends([]Frontend{is}, m.now)
	m.finishTries(80, Unanswered)
	m.setNodes(80, "198.51.100.11:30080 (refused)")
	require.Equal(t, failed(ofTheNodes, is), m.newReport().Failures)
	m.finishTries(80, Unanswered, Unanswered)
	m.setNodes(80)
	require.Equal(t, Report{Untried: 1}, m.newReport(), "no answered try is known")
}

func TestAFailureAtAnotherGatewayLastsUntilTheFirstTryHere(t *testing.T) {
	const elsewhere = "at gateway g2, which answered for the address before: " + ofTheDataplane
	m, is := newManual(), port(80)
	is.Former, is.Moved = elsewhere, true
	require.Empty(t, m.newReport().Failures)
	m.setFrontends([]Frontend{is, port(81)}, m.now)
	fails := []Failure{{AddrPort: is.AddrPort, Message: elsewhere}}
	require.Equal(t, Report{Failures: fails, Untried: 1}, m.newReport(), "the state of its nodes is not known here")
	m.setFrontends([]Frontend{port(80), port(81)}, m.now)
	m.finishTries(80, Unanswered)
	require.Equal(t, fails, m.newReport().Failures, "its nodes were not asked yet")
	m.setNodes(80)
	require.Equal(t, Report{Untried: 2}, m.newReport(), "tries may not arrive here, although they did there")
	m.finishTries(81, Unanswered, Unanswered, Unanswered)
	m.setNodes(81)
	require.Equal(t, Report{Untried: 2}, m.newReport(), "that says nothing about other ports")
	m.finishTries(81, Answered, Answered, Answered)
	require.Equal(t, failed(ofTheDataplane, is), m.newReport().Failures, "tries arrive, and the one of this port was not answered")

	m = newManual()
	m.setFrontends([]Frontend{port(80)}, m.now)
	m.finishTries(80, Answered)
	m.setFrontends([]Frontend{is}, m.now)
	require.Equal(t, fails, m.newReport().Failures, "the answer here is older than the failure there")
	m.reset(t.Context(), errors.New("kubelb-watch is down"))
	require.Equal(t, fails, m.lastReport.Failures)
	m.setFrontends([]Frontend{port(80)}, m.now)
	m.finishTries(80, Answered, Answered, Answered)
	require.Equal(t, Report{Answered: 1}, m.newReport())
}

func TestAPartialFailureEndsAfterMoreTries(t *testing.T) {
	m, is := newManual(), port(80)
	is.Former = "some connections get no answer"
	m.setFrontends([]Frontend{is}, m.now)
	m.finishTries(80, Answered, Answered, Answered)
	require.Len(t, m.newReport().Failures, 1, "one of several nodes may fail")
	m.finishTries(80, Answered, Answered, Answered, Answered, Answered)
	require.Equal(t, Report{Answered: 1}, m.newReport())
}

func TestAFailureOutlastsTheInterfacesOfTries(t *testing.T) {
	m := newManual()
	m.setFrontends([]Frontend{port(80), port(81), port(82)}, m.now)
	m.finishTries(80, Answered, Unanswered, Unanswered, Unanswered)
	m.setNodes(80)
	m.finishTries(81, Answered)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80)), Answered: 1, Untried: 1}, m.newReport())
	for range 2 {
		m.reset(t.Context(), errors.New("kubelb-watch is down"))
		require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80)), Untried: 2, Problem: "kubelb-watch is down"}, m.lastReport)
	}
	m.setFrontends([]Frontend{port(80), port(81), port(82)}, m.now)
	m.finishTries(80, Unanswered)
	m.setNodes(80)
	require.Equal(t, failed(ofTheDataplane, port(80)), m.newReport().Failures, "it is still known that tries arrived")
}

func TestAPausedFrontendKeepsItsFailureAndIsNotTried(t *testing.T) {
	m := newManual()
	m.setFrontends([]Frontend{port(80), port(81)}, m.now)
	m.finishTries(80, Answered, Unanswered, Unanswered, Unanswered)
	m.setNodes(80)
	m.finishTries(81, Answered)
	on := &try{frontendState: m.frontends[port(80).AddrPort]}
	paused := []Frontend{port(80), port(81)}
	paused[0].Paused, paused[1].Paused = true, true
	m.setFrontends(paused, m.now)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80))}, m.newReport(), "the other port has no failure to keep")
	m.finish(on, Unanswered, m.now)
	m.veth = &vethPair{sources: []netip.Addr{client4}}
	require.NoError(t, m.startTries(m.now.Add(time.Hour)), "nothing is sent")
	require.Empty(t, m.tries)

	m.setFrontends([]Frontend{port(80), port(81)}, m.now)
	require.Equal(t, Report{Failures: failed(ofTheDataplane, port(80)), Untried: 1}, m.newReport())
	m.finishTries(80, Answered, Answered, Answered)
	require.Equal(t, Report{Answered: 1, Untried: 1}, m.newReport())

	m.finishTries(80, Unanswered, Unanswered, Unanswered)
	m.setNodes(80)
	another := port(80)
	another.Tenant, another.Paused = "b", true
	m.setFrontends([]Frontend{another}, m.now)
	require.Equal(t, Report{}, m.newReport(), "it belongs to another tenant now")
}

func TestAnUnconfirmedFailureEndsAfterOneAnsweredTry(t *testing.T) {
	const says = "it may be one of the ports that failed at gateway g2"
	doubted := func(number uint16) Frontend {
		f := port(number)
		f.Former, f.Moved, f.Unconfirmed = says, true, true
		return f
	}
	may := func(numbers ...uint16) (all []Failure) {
		for _, n := range numbers {
			all = append(all, Failure{AddrPort: port(n).AddrPort, Message: says, Unconfirmed: true})
		}
		return all
	}
	m := newManual()
	m.setFrontends([]Frontend{doubted(80), doubted(81), port(82)}, m.now)
	require.Equal(t, Report{Failures: may(80, 81), Untried: 3}, m.newReport())
	m.finishTries(82, Answered, Answered)
	m.finishTries(80, Answered)
	require.Equal(t, Report{Failures: may(81), Answered: 2, Untried: 1}, m.newReport())
	require.False(t, m.frontends[port(80).AddrPort].unconfirmed)
	m.finishTries(81, Unanswered)
	require.Equal(t, may(81), m.newReport().Failures, "one failed try is not enough, and no try was answered")
	m.reset(t.Context(), errors.New("kubelb-watch is down"))
	require.Equal(t, may(81), m.lastReport.Failures)
	paused := doubted(81)
	paused.Paused = true
	m.setFrontends([]Frontend{port(80), paused, port(82)}, m.now)
	require.Equal(t, may(81), m.newReport().Failures, "clients do not reach it here")

	m.setFrontends([]Frontend{port(80), port(81), port(82)}, m.now)
	m.finishTries(82, Answered)
	m.finishTries(81, Unanswered, Unanswered, Unanswered)
	require.Equal(t, may(81), m.newReport().Failures, "its nodes were not asked yet")
	m.setNodes(81)
	require.Equal(t, failed(ofTheDataplane, port(81)), m.newReport().Failures)
	m.setFrontends([]Frontend{doubted(81)}, m.now)
	require.Equal(t, failed(ofTheDataplane, port(81)), m.newReport().Failures, "a known failure comes before an unconfirmed one")

	m = newManual()
	m.setFrontends([]Frontend{doubted(80)}, m.now)
	f := port(80)
	f.Former = ofTheNodes
	m.setFrontends([]Frontend{f}, m.now)
	require.Equal(t, failed(ofTheNodes, f), m.newReport().Failures, "so does a known failure of another gateway")
}

// A frontend may recover after its failure was handed over and before a report.
func TestAReportHasTheNumberOfItsList(t *testing.T) {
	var told []Report
	m := newManual()
	m.options.OnReport = func(_ context.Context, r Report) { told = append(told, r) }
	m.publish(t.Context(), m.now)
	m.setFrontends([]Frontend{port(80)}, m.now)
	m.publish(t.Context(), m.now.Add(m.times.countInterval))
	require.Equal(t, []Report{{Untried: 1}}, told)
	soon := m.now.Add(m.times.countInterval + m.times.reportInterval)
	m.setList(List{Frontends: []Frontend{port(80)}, Number: 1}, m.now)
	m.publish(t.Context(), soon)
	require.Equal(t, Report{Listed: 1, Untried: 1}, told[1], "the failure of the list is over already, and nothing else differs")
	m.setFrontends([]Frontend{port(80)}, m.now)
	m.publish(t.Context(), soon.Add(time.Hour))
	require.Len(t, told, 2)
}
