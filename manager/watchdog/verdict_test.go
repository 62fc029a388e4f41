package watchdog

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// after is what is known of a frontend after outcomes, one letter each: a for answered, n for no answer.
func after(outcomes string) *history {
	h, now := &history{}, time.Time{}
	for _, o := range outcomes {
		now = now.Add(5 * time.Second)
		if o == 'a' {
			h.note(Answered, now, usualTimes().failsFor)
		} else {
			h.note(Unanswered, now, usualTimes().failsFor)
		}
	}
	return h
}

// Nodes refuse the connections of a Service that has just been changed until their kube-proxy knows of it. An hour of changes had five alarms by that.
func TestAFrontendThatIsRefusedForAFewSecondsDoesNotFail(t *testing.T) {
	h, changed := &history{}, time.Now()
	refused := func(after time.Duration) bool {
		h.note(Refused, changed.Add(after), usualTimes().failsFor)
		return h.failing
	}
	for after := range 4 {
		require.False(t, refused(time.Duration(after)*usualTimes().again))
	}
	h.note(Answered, changed.Add(7*time.Second), usualTimes().failsFor)
	require.False(t, h.failing)
	require.True(t, refused(9*time.Second), "it goes on")
}

func TestAFrontendFailsWhenThreeOfItsLastTriesDid(t *testing.T) {
	for outcomes, fails := range map[string]bool{
		"": false, "a": false, "n": false, "nn": false, "nnn": true, "annn": true, "nan": false, "naan": false, "nanan": true,
		"naaaaaaaaaaan": false, "nnaaaaaaaaaan": false,
		"nnnaa": true, "nnnaaa": false,
		// One of two endpoints fails.
		"nananaaa": true, "nananaaaaaaa": true, "nananaaaaaaaa": false, "nnnanaaa": true, "nnnanaaaaaaaa": false,
	} {
		require.Equal(t, fails, after(outcomes).failing, outcomes)
	}
}

func TestWhatHappensIsSaidInTheSameWordsAsLongAsItHappens(t *testing.T) {
	h := after("nanan")
	require.Equal(t, "some connections get no answer", h.says())
	h = after("aaaaaaaaaaaannn")
	require.Equal(t, "connections get no answer", h.says())
	for range 20 {
		h.note(Unanswered, time.Now(), 0)
		require.Equal(t, "connections get no answer", h.says())
	}
	h.note(Answered, time.Now(), 0)
	h.note(Unanswered, time.Now(), 0)
	require.Equal(t, "some connections get no answer", h.says())
}

func TestTenantsTakeTurnsAtTries(t *testing.T) {
	now := time.Now()
	var due []*watched
	for n := range 1000 {
		due = append(due, &watched{Frontend: Frontend{Tenant: "many"}, due: now.Add(-time.Hour + time.Duration(n)*time.Second)})
	}
	few := []*watched{{Frontend: Frontend{Tenant: "few"}, due: now}, {Frontend: Frontend{Tenant: "few"}, due: now.Add(time.Second)}}
	first := inTurns(append(due, few...))[:perTick]
	require.Contains(t, first, few[0])
	require.Contains(t, first, few[1])
	require.Equal(t, now.Add(-time.Hour), first[0].due, "who has waited longest is first")
}

func TestAProcessThatStoodStillHasMissedNoAnswer(t *testing.T) {
	began := time.Now()
	w := New(Options{Every: time.Minute})
	is := &watched{Frontend: Frontend{AddrPort: flows()[0].frontend}}
	w.watched[is.AddrPort] = is
	w.tries[flows()[0]] = &try{flow: flows()[0], of: is, began: began, again: true}
	w.expire(began.Add(tick))
	again := began.Add(time.Minute)
	w.expire(again)
	require.Empty(t, is.history.last, "the answer may wait to be read")
	for after := tick; after < w.times.answerWithin-tick; after += tick {
		w.expire(again.Add(after))
	}
	require.Empty(t, is.history.last)
	w.expire(again.Add(w.times.answerWithin))
	require.Equal(t, []Outcome{Unanswered}, is.history.last)
}

func TestHoweverOftenFrontendsFailThatIsToldOnceASecond(t *testing.T) {
	var told []Report
	w := New(Options{Every: time.Minute, Tell: func(_ context.Context, r Report) { told = append(told, r) }})
	w.works[true] = true
	is := &watched{Frontend: Frontend{AddrPort: flows()[0].frontend}}
	w.watched[is.AddrPort] = is
	began := time.Now()
	for n := range 101 {
		is.history.failing, w.fresh = n%4 < 2, true
		w.publish(t.Context(), began.Add(time.Duration(n)*tick))
	}
	require.LessOrEqual(t, len(told), 11)
	require.NotEmpty(t, told)
	w.publish(t.Context(), began.Add(time.Minute))
	require.Len(t, told[len(told)-1].Failures, 1, "the last state is told in the end")
}

func TestNodesThatWereNotAskedAreNotSaidToAnswer(t *testing.T) {
	w := New(Options{Every: time.Minute})
	is := &watched{Frontend: Frontend{AddrPort: flows()[0].frontend, Endpoints: make([]netip.AddrPort, asked)}, history: *after("nnn"), endpoints: hearing{asked: asked, at: time.Now()}}
	w.works[true] = true
	message, _ := w.failure(is)
	require.Equal(t, "connections get no answer; its nodes answer the gateway itself, so that its dataplane, or a firewall of its host, is the reason", message)
	is.Endpoints = make([]netip.AddrPort, 100)
	message, _ = w.failure(is)
	require.Equal(t, "connections get no answer; of its nodes 4 were asked, which answer the gateway itself", message)
}

func TestATryWhoseAnswerMayBeLostSaysNothing(t *testing.T) {
	began := time.Now()
	var told []Report
	w := New(Options{Every: time.Minute, Tell: func(_ context.Context, r Report) { told = append(told, r) }})
	is := &watched{Frontend: Frontend{AddrPort: flows()[0].frontend}, trying: true}
	w.watched[is.AddrPort] = is
	w.tries[flows()[0]] = &try{flow: flows()[0], of: is, began: began, again: true}
	w.overrun, w.fresh = began.Add(tick), true
	w.expire(began.Add(w.times.answerWithin))
	require.Empty(t, is.history.last)
	require.Empty(t, w.tries)
	require.False(t, is.trying)
	w.publish(t.Context(), began.Add(time.Second))
	require.Contains(t, told[0].Problem, "some answers are lost")
	w.fresh = true
	w.publish(t.Context(), began.Add(30*time.Second))
	require.Len(t, told, 1, "nothing has changed")
	w.fresh = true
	w.publish(t.Context(), began.Add(2*time.Minute))
	require.Empty(t, told[1].Problem)
}

func TestWhoEndsConnectionsByItselfIsTriedNoOftenerThanOthers(t *testing.T) {
	now := time.Now()
	w := New(Options{Every: time.Minute})
	is := &watched{Frontend: Frontend{AddrPort: flows()[0].frontend}}
	w.watched[is.AddrPort] = is
	ends := func(o Outcome) time.Duration {
		w.end(&try{flow: flows()[0], of: is}, o, now)
		return is.due.Sub(now)
	}
	for range failsAt {
		require.Equal(t, w.times.again, ends(Closed), "it may be what fails")
	}
	is.endpoints = hearing{at: now, asked: 1, ends: true}
	require.Equal(t, time.Minute, ends(Closed))
	require.Equal(t, w.times.again, ends(Unanswered), "which its endpoints do not do")
}

func TestWhatLetsInItsClientsAloneIsNotSaidToFail(t *testing.T) {
	w := New(Options{Every: time.Minute})
	w.times.failsFor = 0
	add := func(at int, keeps bool) *watched {
		is := &watched{Frontend: Frontend{AddrPort: netip.AddrPortFrom(flows()[0].frontend.Addr(), uint16(at)), Tenant: "a", KeepsClient: keeps}}
		w.watched[is.AddrPort] = is
		return is
	}
	ends := func(is *watched, o Outcome) {
		for range failsAt {
			w.end(&try{flow: flow{frontend: is.AddrPort}, of: is}, o, time.Now())
		}
	}
	fails := func(is *watched) bool {
		is.endpoints.silent = []string{"198.51.100.11:30080 (no answer)"}
		_, fails := w.failure(is)
		return fails
	}
	open, policed, rewritten := add(80, true), add(81, true), add(82, false)
	ends(open, Answered)
	ends(policed, Unanswered)
	ends(rewritten, Unanswered)
	require.False(t, fails(policed), "a NetworkPolicy may let in clients and not this host")
	require.True(t, fails(rewritten), "its nodes see this host alone")
	ends(policed, Answered)
	ends(policed, Unanswered)
	require.True(t, fails(policed), "it let in tries before")
}
