// Package gateway is the manager's role on every host that moves packets: it watches the hub, translates, probes the
// tenants' nodes, drives the local backend and announces addresses. It writes nothing but its own Gateway object.
//
// One goroutine, the loop, owns the translated model and the backend; informers, the prober and the backend's watch send
// it events.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/ownership"
	"kubelb.k8c.io/manager/gateway/redirect"
	"kubelb.k8c.io/manager/gateway/report"
	"kubelb.k8c.io/manager/gateway/routers"
	"kubelb.k8c.io/manager/probe"
	"kubelb.k8c.io/manager/selection"
	"kubelb.k8c.io/manager/watchdog"
)

// Gateway is a runnable of the manager. Make one with New.
type Gateway struct {
	options Options
	cache   cache.Cache
	client  client.Client
	log     *slog.Logger

	events chan event
	prober *probe.Prober
	hub    *translate.Hub
	driver *driver.Driver
	pools  map[string]ipam.Pool
	// external are pools' ranges that no target may lie in.
	external map[string][]ipam.Range
	hosts    hosts
	// selection is which gateways serve which pools.
	selection *selection.Selection
	// seen is the highest resourceVersion of a LoadBalancer.
	seen uint64
	// changedDuringCall: events have come while the plugin was called, which it was not sent.
	changedDuringCall bool
	synced            bool
	// hostChecks are the outcome of HostChecks, lacked are the lines about what this host lacks that were logged.
	hostChecks []dataplane.Check
	lacked     map[string]bool
	// transitChecks say why strangers are not kept out, moved is told when frontends and endpoints have changed, filterNow when the first one is due
	// that knows of the dataplane.
	transitChecks []dataplane.Check
	moved         chan struct{}
	filterNow     chan struct{}
	// watchdog tries frontends, nil if tries are turned off.
	watchdog *watchdog.Watchdog
	tries    *report.Tries
	serving  *report.Served
	silence  report.Silence
	counters report.Counters
	metrics  *report.Metrics
	writer   *report.Writer
	// targets is how many are checked, unhealthy are those of them that do not take traffic.
	targets   int
	unhealthy map[translate.Target]bool
	// served: the dataplane has held everything since this process began, and strangers are kept out, of whom the filter tells it apart.
	served bool

	ownership *ownership.Ownership
	// reachability tells which hosts of failed gateways answer.
	reachability *redirect.Reachability
	counts       chan countRequest
	// routers is there where addresses are announced by BGP.
	routers *routers.Routers
	drain   *drain.State
	// unready is why the gateway is of no use, nil when it is. Other goroutines ask.
	unready atomic.Pointer[error]
}

// event changes the loop's state.
type event func(*Gateway)

// New returns a gateway that reads the hub through the cache and writes its own object with the client.
func New(o Options, c cache.Cache, w client.Client) *Gateway {
	if o.Wake == nil {
		o.Wake = NewWake()
	}
	g := &Gateway{options: o, cache: c, client: w, log: o.Log.With("gateway", o.Name), drain: drain.New(o.Log.With("gateway", o.Name)), events: make(chan event, 4096), hub: translate.NewHub(),
		pools: map[string]ipam.Pool{}, external: map[string][]ipam.Range{}, selection: selection.New(), metrics: report.NewMetrics(),
		unhealthy: map[translate.Target]bool{}, counts: make(chan countRequest, 1), moved: make(chan struct{}, 1), filterNow: make(chan struct{}, 1)}
	if o.Speaker != nil {
		g.routers = routers.New(routers.Options{Speaker: o.Speaker, Hub: c, Secrets: o.Secrets, Namespace: o.Namespace, Gateway: o.Name, Changed: o.Wake.Up, Log: o.Log})
	}
	g.reachability = redirect.NewReachability(redirect.CheckHost, o.Addresses, o.Wake.Up)
	g.ownership = ownership.New(g.owns())
	g.driver = driver.New(driver.Options{Backend: o.Backend, Load: o.Load, Model: g.hub, Addresses: g.ownership, Observer: g.metrics, Redirect: g.ownership.Redirect,
		InSync: g.serveFiltered, Log: g.log})
	g.tries, g.serving = report.NewTries(o.Name, o.TryEvery > 0, g.hub.Owner, g.ownership), report.NewServed(o.Segment, o.TryEvery > 0)
	g.writer = report.NewWriter(w, o.Name, o.Labels, o.lease(), g.log)
	g.noteReadiness()
	if o.TryEvery > 0 {
		g.watchdog = g.newWatchdog()
	}
	return g
}

// owns are the options of the gateway's Ownership.
func (g *Gateway) owns() ownership.Options {
	o := g.options
	own := ownership.Options{Name: o.Name, Elects: o.Elects, Announcer: o.Announcer, SetTenant: o.SetTenant, Right: o.Right, Selection: g.selection, Redirect: o.Handover,
		Alive: g.reachability.Alive, Wake: o.Wake.Up}
	if o.Member != nil {
		own.Peers = o.Member
	}
	if g.routers != nil {
		own.Routers = g.routers
	}
	return own
}

// NeedLeaderElection: every gateway works, elected or not.
func (g *Gateway) NeedLeaderElection() bool { return false }

// gather is how long the loop waits for more changes before it sends what it has.
const gather = 15 * time.Millisecond

// Start works until ctx ends.
func (g *Gateway) Start(ctx context.Context) (err error) {
	if err := g.metrics.Register(g.options.Metrics); err != nil {
		return err
	}
	defer g.driver.Stop()
	err = g.run(ctx)
	// One that fails, or whose process does, starts again; what its dataplane holds stays.
	if (g.options.PurgeOnExit || g.drain.Decommissioned()) && g.drain.Shutdown.Requested() {
		err = errors.Join(err, g.purge())
	}
	return err
}

func (g *Gateway) run(ctx context.Context) error {
	runs, runCtx := errgroup.WithContext(ctx)
	g.prober = probe.New(g.options.Probe, func(r probe.Result) {
		g.send(runCtx, func(g *Gateway) { g.setHealth(r) })
	})
	synced, err := g.watch(runCtx)
	if err != nil {
		return err
	}
	if g.options.PurgeWith != "" {
		if err := drain.WatchDaemonSet(runCtx, g.cache, g.options.PurgeWith, g.decommission); err != nil {
			return err
		}
	}
	if g.options.DrainWithNode != "" {
		if err := drain.WatchNode(runCtx, g.cache, g.options.DrainWithNode, func(cordoned bool) {
			g.send(runCtx, func(g *Gateway) { g.drain.Cordon(cordoned) })
		}); err != nil {
			return err
		}
	}
	if g.watchdog != nil {
		// Before the dataplane starts, which looks what interfaces there are. Run tries again if it fails.
		if err := g.watchdog.Open(); err != nil {
			g.log.Warn("frontends cannot be tried yet", "error", err)
		}
		runs.Go(func() error { return g.watchdog.Run(runCtx) })
		runs.Go(func() error { return g.neighbours().Run(runCtx) })
	}
	runs.Go(func() error { return g.prober.Run(runCtx) })
	runs.Go(func() error { return g.options.Announcer.Run(runCtx) })
	if g.options.Member != nil {
		runs.Go(func() error { return g.options.Member.Run(runCtx) })
		runs.Go(func() error { return g.options.Right.Run(runCtx) })
		runs.Go(func() error { return g.options.Heart.Run(runCtx, g.options.SegmentKey(runCtx)) })
	}
	if g.options.Presence != nil {
		runs.Go(func() error { return g.options.Presence.Run(runCtx) })
	}
	if g.routers != nil {
		runs.Go(func() error { return g.routers.Run(runCtx) })
	}
	runs.Go(func() error { return g.reachability.Run(runCtx) })
	runs.Go(func() error { return g.writer.Run(runCtx) })
	runs.Go(func() error { return g.readCounters(runCtx) })
	runs.Go(func() error { return g.watchHost(runCtx) })
	runs.Go(func() error { return g.driver.Run(runCtx, g.post) })
	runs.Go(func() error { return g.keepTransit(runCtx) })
	runs.Go(func() error { return g.loop(runCtx, synced) })
	return runs.Wait()
}

// Shutdown has the gateway drain before it ends: others take over, and then it waits for the connections that would end with it, for DrainTimeout at
// most. It waits for nothing where nobody takes over, and before it has served.
func (g *Gateway) Shutdown(ctx context.Context) {
	g.drain.Shutdown.Request()
	if g.options.DrainTimeout == 0 || g.Ready(nil) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, g.options.DrainTimeout)
	defer cancel()
	g.send(ctx, func(g *Gateway) { g.drain.Shutdown.Begin() })
	if !g.drain.Shutdown.Wait(ctx) {
		g.log.Warn("ends, though connections may be left: clients had all the time that they get", "drain-timeout", g.options.DrainTimeout)
	}
}

// decommission notes that the DaemonSet is deleted that PurgeWith names.
func (g *Gateway) decommission() {
	if g.drain.Decommission() {
		g.log.Info("the DaemonSet is deleted: this gateway's dataplane will be, too, when it ends", "daemonset", g.options.PurgeWith)
	}
}

// errStarting is why a gateway is not ready that has just begun.
var errStarting = errors.New("the dataplane does not hold everything yet")

// Ready is a readiness check: it says why the gateway is of no use, be it for now.
func (g *Gateway) Ready(*http.Request) error { return *g.unready.Load() }

func (g *Gateway) noteReadiness() {
	var unready error
	switch {
	case g.driver.Problem() != nil:
		unready = fmt.Errorf("backend: %w", g.driver.Problem())
	case !g.served:
		unready = errStarting
	}
	g.unready.Store(&unready)
}

// elect brings what is answered for to what this gateway and its peers know now.
func (g *Gateway) elect(ctx context.Context) {
	s := ownership.State{Served: g.served, Draining: g.drain.Draining(), NoticeOver: g.drain.NoticeOver(time.Now())}
	if slices.Contains(g.driver.Description().Features, dataplane.Handover) {
		s.RedirectAddresses = g.options.Addresses
	}
	g.ownership.Elect(ctx, g.driver, s)
}

// send hands an event to the loop.
func (g *Gateway) send(ctx context.Context, e event) {
	select {
	case g.events <- e:
	case <-ctx.Done():
	}
}

// post hands a function to the loop.
func (g *Gateway) post(ctx context.Context, f func()) { g.send(ctx, func(*Gateway) { f() }) }

// asked has the loop answer a question. It returns false if ctx ends before.
func asked[T any](ctx context.Context, g *Gateway, question func(*Gateway) T) (answer T, is bool) {
	answers := make(chan T, 1)
	g.send(ctx, func(g *Gateway) { answers <- question(g) })
	select {
	case answer = <-answers:
		return answer, true
	case <-ctx.Done():
		return answer, false
	}
}

func (g *Gateway) purge() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := g.driver.Purge(ctx); err != nil {
		return err
	}
	if err := g.endTransit(); err != nil {
		return err
	}
	return g.driver.RemoveInstalled()
}

func (g *Gateway) loop(ctx context.Context, synced func() bool) error {
	g.driver.DuringCall(g.duringCall)
	defer g.driver.DuringCall(nil)
	timer := time.NewTimer(0)
	defer timer.Stop()
	gathering := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-g.events:
			e(g)
			if !gathering {
				gathering = true
				timer.Reset(gather)
			}
			continue
		case <-g.options.Wake:
		case process := <-g.driver.Ended():
			if !g.driver.HandleEnd(process) {
				continue
			}
		case <-timer.C:
		}
		g.takeEvents()
		gathering = false
		if !g.isSynced(synced) {
			timer.Reset(gather)
			continue
		}
		g.work(ctx)
		g.count()
		g.drain.Shutdown.FinishIfDone(g.ownership.IsReplaced)
		if timer.Reset(g.pause()); g.changedDuringCall {
			timer.Reset(gather)
		}
	}
}

// isSynced tells whether everything is known. Nothing is sent before: an empty model would empty the dataplane.
func (g *Gateway) isSynced(synced func() bool) bool {
	if !g.synced && synced() {
		g.synced = true
		g.takeEvents() // what came since the last look is of the first lists, too
	}
	return g.synced
}

// takeEvents takes all events that are there.
func (g *Gateway) takeEvents() {
	for {
		select {
		case e := <-g.events:
			e(g)
		default:
			return
		}
	}
}

// settleEvery is how often the gateway looks while what it answers for may change by the passing of time alone.
const settleEvery = 250 * time.Millisecond

// pause is how long nothing needs to be done unless something happens.
func (g *Gateway) pause() time.Duration {
	pause := report.CountInterval
	if now := time.Now(); g.ownership.IsSettling(now) || g.drain.Draining() && g.drain.DrainingFor(now) < 2*drain.Notice {
		pause = settleEvery
	}
	if ends := g.ownership.NextRedirectExpiry(); !ends.IsZero() {
		pause = min(pause, max(time.Millisecond, time.Until(ends)))
	}
	if at := g.driver.RetryAt(); !at.IsZero() {
		pause = min(pause, max(0, time.Until(at)))
	}
	pause = g.drain.Pause(pause, time.Now())
	if at := g.silence.Next(); !at.IsZero() {
		pause = min(pause, max(time.Millisecond, time.Until(at)))
	}
	if g.driver.HasWork() {
		pause = 0
	}
	return pause
}

// work brings backend, prober and announcer to the present model and publishes what came of it.
func (g *Gateway) work(ctx context.Context) {
	g.drain.Update(time.Now(), g.ownership.IsReplaced)
	g.noteHosts(time.Now())
	changes := g.hub.Flush()
	g.changedDuringCall = false
	if !changes.Model.Empty() {
		g.noteMoved()
	}
	g.targets += len(changes.NewTargets) - len(changes.GoneTargets)
	for _, t := range changes.GoneTargets {
		g.prober.Remove(t)
		delete(g.unhealthy, t)
	}
	for _, t := range changes.NewTargets {
		g.prober.Add(t)
	}
	g.driver.Sync(ctx, changes.Model, g.seen)
	g.noteReadiness()
	g.driver.Recheck()
	g.elect(ctx)
	g.publish()
}

// duringCallEvery is how often the gateway looks after itself while the plugin is called.
const duringCallEvery = 250 * time.Millisecond

// duringCall does what cannot wait while the plugin is called: it takes events, elects and publishes. What it hears of the model is sent to the plugin
// later.
func (g *Gateway) duringCall(ctx context.Context, done <-chan struct{}) {
	ticker := time.NewTicker(duringCallEvery)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case e := <-g.events:
			e(g)
			g.changedDuringCall = true
			continue
		case <-g.options.Wake:
		case <-ticker.C:
		}
		g.drain.Update(time.Now(), g.ownership.IsReplaced)
		g.elect(ctx)
		g.publish()
		g.drain.Shutdown.FinishIfDone(g.ownership.IsReplaced)
	}
}

// setHealth takes over what the prober found out. It may still speak of a target that is not checked any more.
func (g *Gateway) setHealth(r probe.Result) {
	g.hub.SetHealth(r.Target, r.Health)
	if r.Health.State == model.Unhealthy && g.hub.HasTarget(r.Target) {
		g.unhealthy[r.Target] = true
	} else {
		delete(g.unhealthy, r.Target)
	}
}
