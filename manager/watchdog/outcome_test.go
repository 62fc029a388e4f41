package watchdog

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// historyOf returns the history after outcomes, one letter each: a for answered, n for no answer.
func historyOf(outcomes string) *history {
	h, now := &history{}, time.Time{}
	for _, o := range outcomes {
		now = now.Add(5 * time.Second)
		if o == 'a' {
			h.add(Answered, now, defaultTimes().failsFor)
		} else {
			h.add(Unanswered, now, defaultTimes().failsFor)
		}
	}
	return h
}

// Nodes refuse the connections of a changed Service until their kube-proxy knows it. An hour of changes caused five false alarms that way.
func TestAFrontendThatIsRefusedForAFewSecondsDoesNotFail(t *testing.T) {
	h, changed := &history{}, time.Now()
	refused := func(after time.Duration) bool {
		h.add(Refused, changed.Add(after), defaultTimes().failsFor)
		return h.failing
	}
	for after := range 4 {
		require.False(t, refused(time.Duration(after)*defaultTimes().retryPause))
	}
	h.add(Answered, changed.Add(7*time.Second), defaultTimes().failsFor)
	require.False(t, h.failing)
	require.True(t, refused(9*time.Second), "it is still refused")
}

func TestAFrontendFailsWhenThreeOfItsLastTriesDid(t *testing.T) {
	for outcomes, fails := range map[string]bool{
		"": false, "a": false, "n": false, "nn": false, "nnn": true, "annn": true, "nan": false, "naan": false, "nanan": true,
		"naaaaaaaaaaan": false, "nnaaaaaaaaaan": false,
		"nnnaa": true, "nnnaaa": false,
		// One of two endpoints fails.
		"nananaaa": true, "nananaaaaaaa": true, "nananaaaaaaaa": false, "nnnanaaa": true, "nnnanaaaaaaaa": false,
	} {
		require.Equal(t, fails, historyOf(outcomes).failing, outcomes)
	}
}

func TestTheMessageStaysTheSameAsLongAsTheSameHappens(t *testing.T) {
	h := historyOf("nanan")
	require.Equal(t, "some connections get no answer", h.describe())
	h = historyOf("aaaaaaaaaaaannn")
	require.Equal(t, "connections get no answer", h.describe())
	for range 20 {
		h.add(Unanswered, time.Now(), 0)
		require.Equal(t, "connections get no answer", h.describe())
	}
	h.add(Answered, time.Now(), 0)
	h.add(Unanswered, time.Now(), 0)
	require.Equal(t, "some connections get no answer", h.describe())
}

func TestTenantsTakeTurnsAtTries(t *testing.T) {
	now := time.Now()
	var due []*frontendState
	for n := range 1000 {
		due = append(due, &frontendState{Frontend: Frontend{Tenant: "many"}, due: now.Add(-time.Hour + time.Duration(n)*time.Second)})
	}
	few := []*frontendState{{Frontend: Frontend{Tenant: "few"}, due: now}, {Frontend: Frontend{Tenant: "few"}, due: now.Add(time.Second)}}
	first := takeTurns(append(due, few...))[:triesPerTick]
	require.Contains(t, first, few[0])
	require.Contains(t, first, few[1])
	require.Equal(t, now.Add(-time.Hour), first[0].due, "the one that has waited longest is first")
}

func TestTriesDoNotTimeOutWhileTheProcessStandsStill(t *testing.T) {
	began := time.Now()
	w := New(Options{Interval: time.Minute})
	state := &frontendState{Frontend: Frontend{AddrPort: flows()[0].frontend}}
	w.frontends[state.AddrPort] = state
	w.tries[flows()[0]] = &try{flow: flows()[0], frontendState: state, started: began, repeated: true}
	w.expire(began.Add(tick))
	again := began.Add(time.Minute)
	w.expire(again)
	require.Empty(t, state.history.last, "the answer may not be read yet")
	for after := tick; after < w.times.answerTimeout-tick; after += tick {
		w.expire(again.Add(after))
	}
	require.Empty(t, state.history.last)
	w.expire(again.Add(w.times.answerTimeout))
	require.Equal(t, []Outcome{Unanswered}, state.history.last)
}

func TestFrequentFailuresAreReportedOnceASecond(t *testing.T) {
	var told []Report
	w := New(Options{Interval: time.Minute, OnReport: func(_ context.Context, r Report) { told = append(told, r) }})
	w.answeredFamilies[true] = true
	state := &frontendState{Frontend: Frontend{AddrPort: flows()[0].frontend}}
	w.frontends[state.AddrPort] = state
	began := time.Now()
	for n := range 101 {
		state.history.failing, w.changed = n%4 < 2, true
		w.publish(t.Context(), began.Add(time.Duration(n)*tick))
	}
	require.LessOrEqual(t, len(told), 11)
	require.NotEmpty(t, told)
	w.publish(t.Context(), began.Add(time.Minute))
	require.Len(t, told[len(told)-1].Failures, 1, "the last state is reported in the end")
}

func TestOnlyNodesThatWereAskedAreReportedToAnswer(t *testing.T) {
	w := New(Options{Interval: time.Minute})
	state := &frontendState{Frontend: Frontend{AddrPort: flows()[0].frontend, Endpoints: make([]netip.AddrPort, maxEndpoints)}, history: *historyOf("nnn"), endpoints: endpointResult{count: maxEndpoints, at: time.Now()}}
	w.answeredFamilies[true] = true
	message, _ := w.failure(state)
	require.Equal(t, "connections get no answer; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host", message)
	state.Endpoints = make([]netip.AddrPort, 100)
	message, _ = w.failure(state)
	require.Equal(t, "connections get no answer; 4 of its nodes were asked, and answer the gateway itself", message)
}

func TestATryIsDiscardedIfItsAnswerMayBeLost(t *testing.T) {
	began := time.Now()
	var told []Report
	w := New(Options{Interval: time.Minute, OnReport: func(_ context.Context, r Report) { told = append(told, r) }})
	state := &frontendState{Frontend: Frontend{AddrPort: flows()[0].frontend}, trying: true}
	w.frontends[state.AddrPort] = state
	w.tries[flows()[0]] = &try{flow: flows()[0], frontendState: state, started: began, repeated: true}
	w.lastOverrun, w.changed = began.Add(tick), true
	w.expire(began.Add(w.times.answerTimeout))
	require.Empty(t, state.history.last)
	require.Empty(t, w.tries)
	require.False(t, state.trying)
	w.publish(t.Context(), began.Add(time.Second))
	require.Contains(t, told[0].Problem, "some answers are lost")
	w.changed = true
	w.publish(t.Context(), began.Add(30*time.Second))
	require.Len(t, told, 1, "nothing has changed")
	w.changed = true
	w.publish(t.Context(), began.Add(2*time.Minute))
	require.Empty(t, told[1].Problem)
}

func TestAnEndpointThatEndsConnectionsItselfCausesNoRetries(t *testing.T) {
	now := time.Now()
	w := New(Options{Interval: time.Minute})
	state := &frontendState{Frontend: Frontend{AddrPort: flows()[0].frontend}}
	w.frontends[state.AddrPort] = state
	ends := func(o Outcome) time.Duration {
		w.finish(&try{flow: flows()[0], frontendState: state}, o, now)
		return state.due.Sub(now)
	}
	for range failsAt {
		require.Equal(t, w.times.retryPause, ends(Closed), "the frontend may fail")
	}
	state.endpoints = endpointResult{at: now, count: 1, closes: true}
	require.Equal(t, time.Minute, ends(Closed))
	require.Equal(t, w.times.retryPause, ends(Unanswered), "its endpoints do not do that themselves")
}

func TestAFrontendThatAcceptsOnlyItsClientsDoesNotFail(t *testing.T) {
	w := New(Options{Interval: time.Minute})
	w.times.failsFor = 0
	add := func(at int, keeps bool) *frontendState {
		state := &frontendState{Frontend: Frontend{AddrPort: netip.AddrPortFrom(flows()[0].frontend.Addr(), uint16(at)), Tenant: "a", KeepsClientAddress: keeps}}
		w.frontends[state.AddrPort] = state
		return state
	}
	ends := func(state *frontendState, o Outcome) {
		for range failsAt {
			w.finish(&try{flow: flow{frontend: state.AddrPort}, frontendState: state}, o, time.Now())
		}
	}
	fails := func(state *frontendState) bool {
		state.endpoints.silent = []string{"198.51.100.11:30080 (no answer)"}
		_, fails := w.failure(state)
		return fails
	}
	open, policed, rewritten := add(80, true), add(81, true), add(82, false)
	ends(open, Answered)
	ends(policed, Unanswered)
	ends(rewritten, Unanswered)
	require.False(t, fails(policed), "a NetworkPolicy may accept clients and not this host")
	require.True(t, fails(rewritten), "its nodes see only this host")
	ends(policed, Answered)
	ends(policed, Unanswered)
	require.True(t, fails(policed), "it accepted tries before")
}
