package watchdog

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Frontend is a TCP frontend to try.
type Frontend struct {
	netip.AddrPort
	Tenant string
	// KeepsClientAddress: its nodes see the client's address. They may have a route to the tenant's clients, and none to the source of tries.
	KeepsClientAddress bool
	// Limited: it has a limit of connections. The limit may be the reason why a try fails.
	Limited bool
	// Endpoints are the endpoints of new connections.
	Endpoints []netip.AddrPort
	// Paused: it is not to be tried now, since clients do not reach it here. A known failure stays.
	Paused bool
	// Former is the message of its failure by a former process, empty for none. Moved: it failed at another gateway, so that it is not known whether
	// tries arrive here. Unconfirmed: Former only says that it may have failed, so that one answered try is enough.
	Former             string
	Moved, Unconfirmed bool
}

// List has the frontends to try. Number grows with each list that hands over a Former.
type List struct {
	Frontends []Frontend
	Number    uint64
}

// Failure is a frontend that fails.
type Failure struct {
	netip.AddrPort
	// Message says what happens to connections, and whether the host reaches the endpoints by its own connections.
	Message string
	// NodesAnswer: the endpoints that were asked answer the host itself, and the frontend has no limit of connections. So the tenant does not cause
	// the failure.
	NodesAnswer bool
	// Unconfirmed: it only may fail, and was not tried yet.
	Unconfirmed bool
}

// Report is the state of all frontends.
type Report struct {
	// Listed is the number of the last list: the report includes what that list handed over.
	Listed uint64
	// Answered counts frontends whose last try was answered, Untried those of which nothing is known, or only that they may fail.
	Answered, Untried int
	// Problem is why no frontend can be tried, or why answers are lost, empty if all are tried.
	Problem string
	// Failures are the frontends that fail, or may fail, sorted by address and port.
	Failures []Failure
}

// Options configure a Watchdog.
type Options struct {
	// Sources are the source addresses of tries, at most one of each family. No host may have them.
	Sources []netip.Addr
	// Interval is the pause between tries of a frontend that works.
	Interval time.Duration
	// Frontends returns the frontends to try now. It returns none once ctx has ended.
	Frontends func(ctx context.Context) List
	// OnReport is called with each report that differs from the last one.
	OnReport func(context.Context, Report)
	// OnOutcome is called with the outcome of each try. It may be nil.
	OnOutcome func(Outcome)
	Log       *slog.Logger
}

// Bounds of tries.
const (
	tick = 100 * time.Millisecond
	// pauseThreshold is the time between two ticks that shows that this process stood still, as on an overloaded host.
	pauseThreshold = 5 * tick
	// triesPerTick is the number of tries that begin in a tick: 200 a second.
	triesPerTick = 20
	// maxRetriesPerTenant bounds the frontends of a tenant that are tried again after times.retryPause. Its others are tried again after
	// Options.Interval.
	maxRetriesPerTenant = 100
	// While a frontend fails, the host itself connects to at most maxEndpoints of its endpoints: for maxRequests frontends at a time, and for
	// maxRequestsPerTenant of a tenant.
	maxEndpoints, maxRequests, maxRequestsPerTenant = 4, 16, 2
	// Tries use portCount source ports from firstPort on.
	firstPort, portCount = 20000, 40000
	// queueLength is the length of the queues of answers and of requests.
	queueLength = 1024
)

// times are the periods and timeouts of tries.
type times struct {
	// failsFor is how long tries have to fail: after a change of a Service its nodes may refuse connections for some seconds.
	failsFor time.Duration
	// retryPause is the pause before the next try of a frontend that has failed lately.
	retryPause time.Duration
	// A SYN without an answer is repeated after repeatAfter, as TCP does. After answerTimeout the try has failed.
	repeatAfter, answerTimeout time.Duration
	// holdTime is how long an established connection is watched. A proxy accepts it before it reaches an endpoint, tries several endpoints for a
	// second each, and then resets it.
	holdTime time.Duration
	// listInterval is the pause between calls of Options.Frontends.
	listInterval time.Duration
	// connectTimeout is the timeout of the host's own connection to an endpoint.
	connectTimeout time.Duration
	// reopenPause is the pause after the virtual interfaces could not be created, or were removed.
	reopenPause time.Duration
	// reportInterval is the least pause between reports. countInterval is the least pause between reports in which only numbers differ.
	reportInterval, countInterval time.Duration
}

func defaultTimes() times {
	return times{failsFor: 8 * time.Second, retryPause: 2 * time.Second, repeatAfter: time.Second, answerTimeout: 3 * time.Second, holdTime: 4 * time.Second, listInterval: 5 * time.Second, connectTimeout: time.Second, reopenPause: 10 * time.Second, reportInterval: time.Second, countInterval: 5 * time.Second}
}

// Watchdog tries frontends. Create one with New, and call Open and then Run.
type Watchdog struct {
	options Options
	times   times
	veth    *vethPair

	// All below belongs to Run.
	frontends map[netip.AddrPort]*frontendState
	// listed is the number of the list with the present frontends.
	listed uint64
	tries  map[flow]*try
	port   uint16
	// lastTick is the last tick, lastOverrun the last tick before which answers may have been lost.
	lastTick, lastOverrun time.Time
	// answeredFamilies has the families (IPv4 if true) of which a try was answered by nodes that do not see the client's address.
	answeredFamilies map[bool]bool
	lastReport       Report
	// reportedAt is the time of the last report, comparedAt the last comparison with it. changed: something was noted since.
	reportedAt, comparedAt time.Time
	changed                bool
	// requested counts the frontends of each tenant with a request in the queue or under way.
	requested map[string]int
	requests  chan endpointRequest
	results   chan endpointResult
}

// frontendState is a frontend with the results of its tries.
type frontendState struct {
	Frontend
	history history
	due     time.Time
	trying  bool
	// wasAnswered: a try was answered at least once.
	wasAnswered bool
	// former is the message of a failure before the first conclusive tries, empty afterwards. unconfirmed: the frontend only may have failed.
	former      string
	unconfirmed bool
	// endpoints is the result of the host's own connections since the frontend began to fail.
	endpoints endpointResult
	requested bool
}

// New returns a watchdog.
func New(o Options) *Watchdog {
	if o.OnOutcome == nil {
		o.OnOutcome = func(Outcome) {}
	}
	return &Watchdog{options: o, times: defaultTimes(), frontends: map[netip.AddrPort]*frontendState{}, tries: map[flow]*try{}, answeredFamilies: map[bool]bool{}, requested: map[string]int{}, port: uint16(rand.N(portCount))}
}

// Open creates the virtual interfaces, so that a dataplane that starts afterwards finds them.
func (w *Watchdog) Open() (err error) {
	w.veth, err = openVethPair(w.options.Sources)
	return err
}

// Run tries frontends until ctx ends, and then removes the interfaces. While the interfaces cannot be created, its reports have a Problem.
func (w *Watchdog) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.runOnce(ctx)
		if ctx.Err() != nil {
			return err
		}
		if err.Error() != w.lastReport.Problem { // a retry may fail with the same error
			w.options.Log.Warn("frontends cannot be tried", "error", err)
		}
		w.reset(ctx, err)
		pause(ctx, w.times.reopenPause)
	}
	return nil
}

// runOnce tries frontends until an error.
func (w *Watchdog) runOnce(ctx context.Context) error {
	if w.veth == nil {
		if err := w.Open(); err != nil {
			return err
		}
	}
	err := w.tryFrontends(ctx)
	err = errors.Join(err, w.veth.close())
	w.veth = nil
	return err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// reset drops the results of tries, except failures, which may still last. It reports the reason.
func (w *Watchdog) reset(ctx context.Context, reason error) {
	for _, state := range w.frontends {
		state.Frontend = w.withFailure(state.Frontend, state)
	}
	clear(w.tries)
	clear(w.answeredFamilies)
	clear(w.requested)
	for at, state := range w.frontends {
		w.frontends[at] = w.newState(state.Frontend, time.Now())
	}
	r := w.newReport()
	r.Problem = reason.Error()
	w.report(ctx, r)
}

// tryFrontends tries frontends until ctx ends or the interfaces fail.
func (w *Watchdog) tryFrontends(ctx context.Context) error {
	w.requests, w.results = make(chan endpointRequest, queueLength), make(chan endpointResult)
	answers, lists := make(chan answer, queueLength), make(chan List)
	runs, ctx := errgroup.WithContext(ctx)
	runs.Go(func() error { return w.receive(ctx, answers) })
	runs.Go(func() error { return w.list(ctx, lists) })
	runs.Go(func() error {
		<-ctx.Done()
		return w.veth.stop()
	})
	for range maxRequests {
		runs.Go(func() error { return w.checkEndpoints(ctx) })
	}
	runs.Go(func() error { return w.loop(ctx, answers, lists) })
	return runs.Wait()
}

// receive hands answers to the loop until ctx ends.
func (w *Watchdog) receive(ctx context.Context, answers chan<- answer) error {
	for {
		a, err := w.veth.receive()
		switch {
		case ctx.Err() != nil:
			return nil // stop was called
		case err != nil:
			return err
		}
		select {
		case answers <- a:
		case <-ctx.Done():
			return nil
		}
	}
}

// list hands the frontends to try to the loop until ctx ends, as long as nobody changes the interfaces.
func (w *Watchdog) list(ctx context.Context, lists chan<- List) error {
	for ctx.Err() == nil {
		if err := w.veth.check(); err != nil {
			return err
		}
		select {
		case lists <- w.options.Frontends(ctx):
		case <-ctx.Done():
		}
		pause(ctx, w.times.listInterval)
	}
	return nil
}

// loop owns all results until ctx ends.
func (w *Watchdog) loop(ctx context.Context, answers <-chan answer, lists <-chan List) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-answers:
			w.handleAnswer(a, time.Now())
		case list := <-lists:
			w.setList(list, time.Now())
		case h := <-w.results:
			w.setEndpoints(h)
		case now := <-ticker.C:
			if w.veth.overrun() {
				w.lastOverrun, w.changed = now, true
			}
			w.expire(now)
			if err := w.startTries(now); err != nil {
				return err
			}
			w.publish(ctx, now)
		}
	}
}

// setList takes over a list.
func (w *Watchdog) setList(l List, now time.Time) {
	w.setFrontends(l.Frontends, now)
	w.listed = l.Number
}

// setFrontends replaces the frontends. A frontend that stays keeps its results. A frontend whose Paused changes keeps its failure.
func (w *Watchdog) setFrontends(list []Frontend, now time.Time) {
	wanted := make(map[netip.AddrPort]bool, len(list))
	for _, f := range list {
		state := w.frontends[f.AddrPort]
		same := state != nil && state.Tenant == f.Tenant && state.KeepsClientAddress == f.KeepsClientAddress
		if same && f.Former != "" { // earlier tries do not disprove a failure that has moved here
			_, fails := w.failure(state)
			same = fails && (f.Unconfirmed || !state.unconfirmed)
		}
		if same {
			f = w.withFailure(f, state)
		}
		wanted[f.AddrPort] = !f.Paused || f.Former != ""
		if same && state.Paused == f.Paused {
			state.Frontend = f
			continue
		}
		w.frontends[f.AddrPort] = w.newState(f, now)
	}
	maps.DeleteFunc(w.frontends, func(a netip.AddrPort, _ *frontendState) bool { return !wanted[a] })
	w.changed = true
}

// withFailure returns the frontend with its present failure.
func (w *Watchdog) withFailure(f Frontend, state *frontendState) Frontend {
	f.Former, _ = w.failure(state)
	f.Moved, f.Unconfirmed = state.former != "" && state.Moved, state.unconfirmed
	return f
}

// newState returns the state of a frontend without tries. The first tries are spread, since frontends that are due together stay together. A former
// failure lasts until tries are conclusive. Tries did arrive when it was found, unless the nodes were the reason, or the frontend was at another
// gateway.
func (w *Watchdog) newState(f Frontend, now time.Time) *frontendState {
	state := &frontendState{Frontend: f, former: f.Former, unconfirmed: f.Unconfirmed, due: now.Add(rand.N(w.options.Interval / 2))}
	if state.former != "" && !state.unconfirmed {
		state.history.failing, state.history.some = true, strings.Contains(state.former, someFail)
		state.wasAnswered = !state.Moved && (state.KeepsClientAddress || !nodesFail(state.former))
		w.answeredFamilies[state.Addr().Is4()] = w.answeredFamilies[state.Addr().Is4()] || state.wasAnswered && !state.KeepsClientAddress
	}
	return state
}

// startTries starts the tries that are due.
func (w *Watchdog) startTries(now time.Time) error {
	var due []*frontendState
	for _, state := range w.frontends {
		if _, ok := w.veth.source(state.Addr()); ok && !state.Paused && !state.trying && !now.Before(state.due) {
			due = append(due, state)
		}
	}
	for _, state := range takeTurns(due)[:min(len(due), triesPerTick)] {
		if err := w.veth.send(w.newTry(state, now).syn()); err != nil {
			return err
		}
	}
	return nil
}

// takeTurns orders frontends: first the one of each tenant that has been due longest, then the next one of each. So a tenant with many frontends does
// not delay other tenants.
func takeTurns(due []*frontendState) []*frontendState {
	slices.SortFunc(due, func(a, b *frontendState) int { return a.due.Compare(b.due) })
	turns, turn := map[string]int{}, make(map[*frontendState]int, len(due))
	for _, state := range due {
		turn[state] = turns[state.Tenant]
		turns[state.Tenant]++
	}
	slices.SortStableFunc(due, func(a, b *frontendState) int { return turn[a] - turn[b] })
	return due
}

// finish records the outcome of a try.
func (w *Watchdog) finish(t *try, o Outcome, now time.Time) {
	delete(w.tries, t.flow)
	state := t.frontendState
	state.trying = false
	if w.frontends[state.AddrPort] != state {
		return // the frontend was replaced meanwhile
	}
	w.options.OnOutcome(o)
	if o == Answered {
		state.wasAnswered = true
		w.answeredFamilies[state.Addr().Is4()] = w.answeredFamilies[state.Addr().Is4()] || !state.KeepsClientAddress
	}
	changed := state.history.add(o, now, w.times.failsFor)
	state.due = now.Add(w.options.Interval)
	if state.isSuspect() && w.countSuspects(state.Tenant) <= maxRetriesPerTenant {
		state.due = now.Add(w.times.retryPause)
	}
	switch {
	case state.unconfirmed && !state.history.failing && o != Answered: // too few tries have failed
	case !state.history.failing:
		state.endpoints, state.former, state.unconfirmed = endpointResult{}, "", false
	case !state.requested && (changed || o != Answered && now.Sub(state.endpoints.at) >= w.options.Interval):
		w.requestEndpoints(state)
	}
	w.changed = true
}

// endsItself reports whether its endpoints themselves end connections that nobody uses.
func (state *frontendState) endsItself() bool {
	return state.history.endedLast() && len(state.endpoints.silent) == 0 && state.endpoints.closes
}

// isSuspect reports whether a try has failed lately, so that more tries follow soon.
func (state *frontendState) isSuspect() bool {
	return state.former != "" && !state.unconfirmed || state.history.failed() > 0 && !state.endsItself()
}

// isConclusive reports whether failed tries say anything about the frontend. If no try was ever answered and the endpoints work, tries themselves may
// be blocked, by the routes or firewalls of a family. If endpoints see the client's address, they may accept the clients of the frontend only, and
// neither the source of tries nor this host.
func (w *Watchdog) isConclusive(state *frontendState) bool {
	if state.KeepsClientAddress {
		return state.wasAnswered
	}
	return len(state.endpoints.silent) > 0 || w.answeredFamilies[state.Addr().Is4()]
}

// countSuspects counts the frontends of a tenant with a failed try lately.
func (w *Watchdog) countSuspects(tenant string) (n int) {
	for _, state := range w.frontends {
		if state.Tenant == tenant && state.isSuspect() {
			n++
		}
	}
	return n
}

// publish reports changes, not too often: tenants can cause any number of changes, and each report is written to the API.
func (w *Watchdog) publish(ctx context.Context, now time.Time) {
	if !w.changed || now.Sub(w.comparedAt) < w.times.reportInterval {
		return
	}
	w.comparedAt = now
	r := w.newReport()
	if now.Sub(w.lastOverrun) < w.options.Interval {
		r.Problem = "some answers are lost: more packets arrive for the source addresses of tries than can be read"
	}
	sameFailures := slices.Equal(r.Failures, w.lastReport.Failures) && w.lastReport.Problem == r.Problem && w.lastReport.Listed == r.Listed
	if sameFailures && now.Sub(w.reportedAt) < w.times.countInterval {
		return
	}
	w.changed = false
	if sameFailures && r.Answered == w.lastReport.Answered && r.Untried == w.lastReport.Untried {
		return
	}
	w.reportedAt = now
	w.report(ctx, r)
}

func (w *Watchdog) newReport() (r Report) {
	r.Listed = w.listed
	for _, state := range w.frontends {
		switch message, fails := w.failure(state); {
		case fails:
			r.Failures = append(r.Failures, Failure{AddrPort: state.AddrPort, Message: message, NodesAnswer: state.nodesAnswer() && !state.Limited, Unconfirmed: state.unconfirmed})
			if state.unconfirmed {
				r.Untried++
			}
		case state.history.answered():
			r.Answered++
		default:
			r.Untried++
		}
	}
	slices.SortFunc(r.Failures, func(a, b Failure) int { return a.AddrPort.Compare(b.AddrPort) })
	return r
}

func (w *Watchdog) report(ctx context.Context, r Report) {
	w.lastReport = r
	w.options.OnReport(ctx, r)
}
