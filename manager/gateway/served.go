package gateway

import (
	"cmp"
	"context"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/watchdog"
)

// deafness says whether the dataplane fails to return its counters.
type deafness struct {
	// since is when the first of the failed requests in a row was made, zero if the last request succeeded. last is the last error.
	since time.Time
	last  string
}

// deafAfter is how long requests have to fail. A single timeout is not enough: the dataplane may have been busy.
const deafAfter = countLimit + 10*time.Second

// note records the result of a request that was made at askedAt.
func (d *deafness) note(err error, askedAt time.Time) {
	switch {
	case err == nil:
		*d = deafness{}
		return
	case d.since.IsZero():
		d.since = askedAt
	}
	d.last = err.Error()
}

// noteDeafness takes over whether counters could be read. A call that takes long, as of many changes, keeps them waiting by right: BackendBusy says so,
// and at its deadline the backend is started again.
func (g *Gateway) noteDeafness(err error, askedAt time.Time, calling bool) {
	if err == nil {
		g.formerly.dataplane = ""
	}
	if err == nil || !calling {
		g.deaf.note(err, askedAt)
	}
}

func (d *deafness) is(now time.Time) bool { return !d.since.IsZero() && now.Sub(d.since) >= deafAfter }

// neighbours finds out whether hosts on the segment still answer this gateway.
func (g *Gateway) neighbours() *watchdog.Neighbours {
	return &watchdog.Neighbours{Interfaces: g.options.Segment,
		Tell: func(ctx context.Context, s watchdog.Segment) {
			if s.Problem != "" {
				g.log.Warn("no host on the segment answers this gateway", "reason", s.Problem)
			}
			g.send(ctx, func(g *Gateway) { g.segment = s })
		},
		Failed: func(err error) {
			g.log.Warn("it is not known whether hosts on the segment answer this gateway", "error", err)
		}}
}

// formerServed is why the gateway serves nothing, as its former process said last. It counts until this process knows better: a segment or a dataplane
// that stays silent says nothing to a process that has never heard it.
type formerServed struct {
	read bool
	// segment and dataplane are the messages without their beginnings, empty for none.
	segment, dataplane string
}

// The beginnings of the messages.
const (
	unreached   = "clients do not reach this gateway: "
	unanswering = "the dataplane does not answer: "
)

// learn reads the object as the former process left it. What is written later is this process's own.
func (f *formerServed) learn(conditions []metav1.Condition) {
	is := plain.NotTrue(conditions, v1alpha1.ConditionServed)
	switch {
	case f.read || is == nil:
	case is.Reason == v1alpha1.ReasonSegmentSilent:
		f.segment = strings.TrimPrefix(is.Message, unreached)
	case is.Reason == v1alpha1.ReasonDataplaneSilent:
		f.dataplane = strings.TrimPrefix(is.Message, unanswering)
	}
	f.read = true
}

// unheard says at which interfaces no host answers, empty if that is not known. Nobody looks if tries are turned off.
func (g *Gateway) unheard() string {
	if g.watchdog == nil || !watchdog.MayLast(g.formerly.segment, g.options.Segment, g.segment) {
		return g.segment.Problem
	}
	return cmp.Or(g.segment.Problem, g.formerly.segment)
}

// isToAnswer tells whether the gateway answers for addresses, is about to, or did until it was told to end: its next process is to know.
func (g *Gateway) isToAnswer() bool {
	return g.answering.answered() > 0 || !g.served || g.drain.Shutdown.Begun()
}

// servesNothing is the Gateway's condition Served, and false while there is no such condition.
func (g *Gateway) servesNothing() (metav1.Condition, bool) {
	condition := metav1.Condition{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse}
	dataplane := g.formerly.dataplane
	if g.deaf.is(time.Now()) {
		dataplane = g.deaf.last
	}
	switch segment := g.unheard(); {
	case segment != "" && g.isToAnswer():
		condition.Reason, condition.Message = v1alpha1.ReasonSegmentSilent, unreached+segment
	case dataplane != "":
		condition.Reason, condition.Message = v1alpha1.ReasonDataplaneSilent, unanswering+dataplane
	default:
		return condition, false
	}
	condition.Message = plain.Message(condition.Message, 1024)
	return condition, true
}

// countAgainAfter is the pause after counters could not be read.
const countAgainAfter = time.Second
