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
	// KeepsClient: its nodes see the client's address. They may have a route to the tenant's clients, and none to the source of tries.
	KeepsClient bool
	// Limited: it has a limit of connections. The limit may be the reason why a try fails.
	Limited bool
	// Endpoints get its new connections.
	Endpoints []netip.AddrPort
	// Paused: it is not to be tried now, as clients do not reach it here. If it is known to fail, that stays so.
	Paused bool
	// Former is the message of its failure by an earlier process, empty for none. Moved: it failed at another gateway, so that nothing is known of whether
	// tries arrive here. Doubted: Former only says that it may have failed, so that one answered try is enough.
	Former         string
	Moved, Doubted bool
}

// List is the frontends to try. Number grows with each list that hands over a Former.
type List struct {
	Frontends []Frontend
	Number    uint64
}

// Failure is a frontend that does not serve.
type Failure struct {
	netip.AddrPort
	// Message says what happens to connections, and whether the host reaches the endpoints by its own connections.
	Message string
	// NodesAnswer: the endpoints that were asked answer the host itself, and the frontend has no limit of connections. So the reason is not the tenant's.
	NodesAnswer bool
	// Doubted: it may fail, and no try has told yet.
	Doubted bool
}

// Report is what is known of all frontends.
type Report struct {
	// Listed is the number of the last list: what that list handed over is in the report.
	Listed uint64
	// Answered counts frontends whose last try was answered, Untried those of which nothing is known, or only that they may fail.
	Answered, Untried int
	// Problem is why none can be tried, or why answers are lost; empty if all are tried.
	Problem string
	// Failures are the frontends that fail, or may fail, sorted by address and port.
	Failures []Failure
}

// Options say what to try.
type Options struct {
	// Sources are the source addresses of tries, one of each family at most. No host may have them.
	Sources []netip.Addr
	// Every is the pause between tries of a frontend while nothing is wrong with it.
	Every time.Duration
	// Frontends returns the frontends to try now. It returns none once ctx has ended.
	Frontends func(ctx context.Context) List
	// Tell is called with each report that differs from the one before.
	Tell func(context.Context, Report)
	// Count is called with the outcome of each try; it may be nil.
	Count func(Outcome)
	Log   *slog.Logger
}

// Bounds of tries.
const (
	tick = 100 * time.Millisecond
	// standstill is the time between two ticks from which on this process has stood still, as on a host that has too much to do.
	standstill = 5 * tick
	// perTick is the number of tries that begin in a tick: 200 a second.
	perTick = 20
	// againPerTenant bounds the frontends of a tenant that are tried again after times.again. Its others are tried again after Options.Every.
	againPerTenant = 100
	// While a frontend fails, the host connects to at most asked of its endpoints itself: for askAtOnce frontends at a time, and for askPerTenant of
	// a tenant.
	asked, askAtOnce, askPerTenant = 4, 16, 2
	// Tries use portsToUse source ports from firstPort on.
	firstPort, portsToUse = 20000, 40000
	// waitingRoom is the length of the queues of answers and of questions.
	waitingRoom = 1024
)

// times are the periods and timeouts of tries.
type times struct {
	// failsFor is how long tries have to fail: nodes that have yet to learn of a changed Service refuse its connections for some seconds.
	failsFor time.Duration
	// again is the pause before the next try of a frontend that has failed lately.
	again time.Duration
	// A SYN without an answer is repeated after repeatAfter, as TCP does. After answerWithin the try has failed.
	repeatAfter, answerWithin time.Duration
	// holdFor is how long an established connection is watched. A proxy accepts it before it reaches an endpoint, tries several endpoints for a second
	// each, and then resets it.
	holdFor time.Duration
	// listEvery is the pause between calls of Options.Frontends.
	listEvery time.Duration
	// askWithin is the timeout of the host's own connection to an endpoint.
	askWithin time.Duration
	// openAgain is the pause after the virtual interfaces could not be made, or have gone.
	openAgain time.Duration
	// tellEvery is the least pause between reports. countEvery is the least pause between reports in which only numbers differ.
	tellEvery, countEvery time.Duration
}

func usualTimes() times {
	return times{failsFor: 8 * time.Second, again: 2 * time.Second, repeatAfter: time.Second, answerWithin: 3 * time.Second, holdFor: 4 * time.Second, listEvery: 5 * time.Second, askWithin: time.Second, openAgain: 10 * time.Second, tellEvery: time.Second, countEvery: 5 * time.Second}
}

// Watchdog tries frontends. Make one with New; Open comes before Run.
type Watchdog struct {
	options Options
	times   times
	lane    *lane

	// The fields below belong to Run.
	watched map[netip.AddrPort]*watched
	// listed is the number of the list that watched follows.
	listed uint64
	tries  map[flow]*try
	port   uint16
	// ticked is the last tick, overrun the last one before which answers may have been lost.
	ticked, overrun time.Time
	// works tells of which families a try was answered ever, IPv4 if true, where nodes do not see who tries.
	works map[bool]bool
	told  Report
	// toldAt is when that was, lookedAt when it was last compared with the present. fresh: something was noted since.
	toldAt, lookedAt time.Time
	fresh            bool
	// asking counts the frontends of each tenant whose endpoints are being asked.
	asking map[string]int
	asks   chan question
	heard  chan hearing
}

// watched is a frontend, with the results of its tries.
type watched struct {
	Frontend
	history history
	due     time.Time
	trying  bool
	// works: a try was answered ever.
	works bool
	// former is why it failed before what is known of tries began, empty once tries tell. doubted: it may only have failed.
	former  string
	doubted bool
	// endpoints is what the gateway heard of them itself when the frontend had begun to fail.
	endpoints hearing
	asking    bool
}

// New makes a watchdog.
func New(o Options) *Watchdog {
	if o.Count == nil {
		o.Count = func(Outcome) {}
	}
	return &Watchdog{options: o, times: usualTimes(), watched: map[netip.AddrPort]*watched{}, tries: map[flow]*try{}, works: map[bool]bool{}, asking: map[string]int{}, port: uint16(rand.N(portsToUse))}
}

// Open makes the virtual interfaces, so that a dataplane which starts afterwards finds them.
func (w *Watchdog) Open() (err error) {
	w.lane, err = openLane(w.options.Sources)
	return err
}

// Run tries frontends until ctx ends, and then removes the interfaces. While the interfaces cannot be made, its reports have a Problem.
func (w *Watchdog) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.again(ctx)
		if ctx.Err() != nil {
			return err
		}
		if err.Error() != w.told.Problem { // each retry would say the same
			w.options.Log.Warn("frontends cannot be tried", "error", err)
		}
		w.forget(ctx, err)
		pause(ctx, w.times.openAgain)
	}
	return nil
}

// again tries frontends until something fails.
func (w *Watchdog) again(ctx context.Context) error {
	if w.lane == nil {
		if err := w.Open(); err != nil {
			return err
		}
	}
	err := w.watch(ctx)
	err = errors.Join(err, w.lane.close())
	w.lane = nil
	return err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// forget drops what is known of tries, but for failures: nobody has seen that they have ended. It reports why.
func (w *Watchdog) forget(ctx context.Context, why error) {
	for _, is := range w.watched {
		is.Frontend = w.withFailure(is.Frontend, is)
	}
	clear(w.tries)
	clear(w.works)
	clear(w.asking)
	for at, is := range w.watched {
		w.watched[at] = w.begins(is.Frontend, time.Now())
	}
	r := w.report()
	r.Problem = why.Error()
	w.tell(ctx, r)
}

// watch tries frontends until ctx ends or the lane fails.
func (w *Watchdog) watch(ctx context.Context) error {
	w.asks, w.heard = make(chan question, waitingRoom), make(chan hearing)
	answers, lists := make(chan answer, waitingRoom), make(chan List)
	runs, ctx := errgroup.WithContext(ctx)
	runs.Go(func() error { return w.receive(ctx, answers) })
	runs.Go(func() error { return w.list(ctx, lists) })
	runs.Go(func() error {
		<-ctx.Done()
		return w.lane.stop()
	})
	for range askAtOnce {
		runs.Go(func() error { return w.askEndpoints(ctx) })
	}
	runs.Go(func() error { return w.loop(ctx, answers, lists) })
	return runs.Wait()
}

// receive hands answers to the loop until ctx ends.
func (w *Watchdog) receive(ctx context.Context, answers chan<- answer) error {
	for {
		a, err := w.lane.receive()
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

// list hands the frontends to try to the loop, again and again until ctx ends, as long as the lane is as it was made.
func (w *Watchdog) list(ctx context.Context, lists chan<- List) error {
	for ctx.Err() == nil {
		if err := w.lane.check(); err != nil {
			return err
		}
		select {
		case lists <- w.options.Frontends(ctx):
		case <-ctx.Done():
		}
		pause(ctx, w.times.listEvery)
	}
	return nil
}

// loop owns all that is known, until ctx ends.
func (w *Watchdog) loop(ctx context.Context, answers <-chan answer, lists <-chan List) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-answers:
			w.take(a, time.Now())
		case list := <-lists:
			w.follow(list, time.Now())
		case h := <-w.heard:
			w.note(h)
		case now := <-ticker.C:
			if w.lane.overrun() {
				w.overrun, w.fresh = now, true
			}
			w.expire(now)
			if err := w.begin(now); err != nil {
				return err
			}
			w.publish(ctx, now)
		}
	}
}

// follow takes over a list.
func (w *Watchdog) follow(l List, now time.Time) {
	w.want(l.Frontends, now)
	w.listed = l.Number
}

// want replaces the list of frontends. A frontend that stays keeps its results; one that is paused, or is so no more, keeps its failure.
func (w *Watchdog) want(list []Frontend, now time.Time) {
	wanted := make(map[netip.AddrPort]bool, len(list))
	for _, f := range list {
		is := w.watched[f.AddrPort]
		same := is != nil && is.Tenant == f.Tenant && is.KeepsClient == f.KeepsClient
		if same && f.Former != "" { // a failure that has moved here is not to be taken for well by earlier tries
			_, fails := w.failure(is)
			same = fails && (f.Doubted || !is.doubted)
		}
		if same {
			f = w.withFailure(f, is)
		}
		wanted[f.AddrPort] = !f.Paused || f.Former != ""
		if same && is.Paused == f.Paused {
			is.Frontend = f
			continue
		}
		w.watched[f.AddrPort] = w.begins(f, now)
	}
	maps.DeleteFunc(w.watched, func(a netip.AddrPort, _ *watched) bool { return !wanted[a] })
	w.fresh = true
}

// withFailure is the frontend with the failure that is known.
func (w *Watchdog) withFailure(f Frontend, is *watched) Frontend {
	f.Former, _ = w.failure(is)
	f.Moved, f.Doubted = is.former != "" && is.Moved, is.doubted
	return f
}

// begins is a frontend of which no try is known. The first tries are spread, since frontends that are due together stay together. One that failed before
// fails until tries tell: it was tried then, so that tries did arrive, unless its nodes were the reason, or it was elsewhere.
func (w *Watchdog) begins(f Frontend, now time.Time) *watched {
	is := &watched{Frontend: f, former: f.Former, doubted: f.Doubted, due: now.Add(rand.N(w.options.Every / 2))}
	if is.former != "" && !is.doubted {
		is.history.failing, is.history.some = true, strings.Contains(is.former, someFail)
		is.works = !is.Moved && (is.KeepsClient || !nodesFail(is.former))
		w.works[is.Addr().Is4()] = w.works[is.Addr().Is4()] || is.works && !is.KeepsClient
	}
	return is
}

// begin begins the tries that are due.
func (w *Watchdog) begin(now time.Time) error {
	var due []*watched
	for _, is := range w.watched {
		if _, has := w.lane.source(is.Addr()); has && !is.Paused && !is.trying && !now.Before(is.due) {
			due = append(due, is)
		}
	}
	for _, is := range inTurns(due)[:min(len(due), perTick)] {
		if err := w.lane.send(w.dial(is, now).syn()); err != nil {
			return err
		}
	}
	return nil
}

// inTurns orders frontends: first the one of each tenant that has been due longest, then the next one of each. So other tenants do not wait longer
// for a tenant with many frontends.
func inTurns(due []*watched) []*watched {
	slices.SortFunc(due, func(a, b *watched) int { return a.due.Compare(b.due) })
	turns, turn := map[string]int{}, make(map[*watched]int, len(due))
	for _, is := range due {
		turn[is] = turns[is.Tenant]
		turns[is.Tenant]++
	}
	slices.SortStableFunc(due, func(a, b *watched) int { return turn[a] - turn[b] })
	return due
}

// end notes what became of a try.
func (w *Watchdog) end(t *try, o Outcome, now time.Time) {
	delete(w.tries, t.flow)
	is := t.of
	is.trying = false
	if w.watched[is.AddrPort] != is {
		return // the frontend was replaced meanwhile
	}
	w.options.Count(o)
	if o == Answered {
		is.works = true
		w.works[is.Addr().Is4()] = w.works[is.Addr().Is4()] || !is.KeepsClient
	}
	changed := is.history.note(o, now, w.times.failsFor)
	is.due = now.Add(w.options.Every)
	if is.suspect() && w.suspects(is.Tenant) <= againPerTenant {
		is.due = now.Add(w.times.again)
	}
	switch {
	case is.doubted && !is.history.failing && o != Answered: // too few tries have failed to tell
	case !is.history.failing:
		is.endpoints, is.former, is.doubted = hearing{}, "", false
	case !is.asking && (changed || o != Answered && now.Sub(is.endpoints.at) >= w.options.Every):
		w.ask(is)
	}
	w.fresh = true
}

// endsItself tells whether its endpoints end connections that nobody uses, as its tries show.
func (is *watched) endsItself() bool {
	return is.history.ended() && len(is.endpoints.silent) == 0 && is.endpoints.ends
}

// suspect tells whether a try has failed lately, so that more are to be made soon.
func (is *watched) suspect() bool {
	return is.former != "" && !is.doubted || is.history.failed() > 0 && !is.endsItself()
}

// maySay tells whether tries say anything of the frontend that was not answered. Where none was ever answered and its endpoints are well, tries may be what
// fails: the routes and firewalls of a family. Where endpoints see the client, they may let in those of the frontend alone, and neither the client of
// tries nor this host.
func (w *Watchdog) maySay(is *watched) bool {
	if is.KeepsClient {
		return is.works
	}
	return len(is.endpoints.silent) > 0 || w.works[is.Addr().Is4()]
}

// suspects counts the frontends of a tenant with a failed try lately.
func (w *Watchdog) suspects(tenant string) (n int) {
	for _, is := range w.watched {
		if is.Tenant == tenant && is.suspect() {
			n++
		}
	}
	return n
}

// publish reports what has changed. Tenants change it as often as they like, and each report is written to the API.
func (w *Watchdog) publish(ctx context.Context, now time.Time) {
	if !w.fresh || now.Sub(w.lookedAt) < w.times.tellEvery {
		return
	}
	w.lookedAt = now
	r := w.report()
	if now.Sub(w.overrun) < w.options.Every {
		r.Problem = "some answers are lost: more packets come for the addresses that tries come from than can be read"
	}
	sameFailures := slices.Equal(r.Failures, w.told.Failures) && w.told.Problem == r.Problem && w.told.Listed == r.Listed
	if sameFailures && now.Sub(w.toldAt) < w.times.countEvery {
		return
	}
	w.fresh = false
	if sameFailures && r.Answered == w.told.Answered && r.Untried == w.told.Untried {
		return
	}
	w.toldAt = now
	w.tell(ctx, r)
}

func (w *Watchdog) report() (r Report) {
	r.Listed = w.listed
	for _, is := range w.watched {
		switch message, fails := w.failure(is); {
		case fails:
			r.Failures = append(r.Failures, Failure{AddrPort: is.AddrPort, Message: message, NodesAnswer: is.nodesAnswer() && !is.Limited, Doubted: is.doubted})
			if is.doubted {
				r.Untried++
			}
		case is.history.answered():
			r.Answered++
		default:
			r.Untried++
		}
	}
	slices.SortFunc(r.Failures, func(a, b Failure) int { return a.AddrPort.Compare(b.AddrPort) })
	return r
}

func (w *Watchdog) tell(ctx context.Context, r Report) {
	w.told = r
	w.options.Tell(ctx, r)
}
