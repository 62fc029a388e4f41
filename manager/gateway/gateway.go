// Package gateway is the role of the manager on every host that forwards packets. It watches the hub, translates the objects into the model, checks
// the tenants' nodes, brings the local dataplane to the model, and announces addresses. It writes nothing but its own Gateway object and its Lease.
//
// One goroutine, the loop, owns the model and the plugin. Informers, the prober and the watch of the plugin send it events.
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
	"kubelb.k8c.io/manager/bgp/routers"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/ownership"
	"kubelb.k8c.io/manager/gateway/redirect"
	"kubelb.k8c.io/manager/gateway/report"
	"kubelb.k8c.io/manager/probe"
	"kubelb.k8c.io/manager/selection"
	"kubelb.k8c.io/manager/watchdog"
)

// Gateway is a runnable of the manager. Create one with New.
type Gateway struct {
	options Options
	cache   cache.Cache
	client  client.Client
	log     *slog.Logger

	events chan event
	prober *probe.Prober
	hub    *translate.Translator
	driver *driver.Driver
	pools  map[string]ipam.Pool
	// externalRanges are the ranges of AddressPools, which contain no targets.
	externalRanges map[string][]ipam.Range
	hosts          hosts
	// selection decides which gateways serve which AddressPools.
	selection *selection.Selection
	// seenVersion is the highest resourceVersion of a LoadBalancer.
	seenVersion uint64
	// changedDuringCall: events of a call changed the model, and the plugin was not sent the changes yet.
	changedDuringCall bool
	synced            bool
	// hostChecks is the result of HostChecks. loggedChecks are the checks that were logged.
	hostChecks   []dataplane.Check
	loggedChecks map[string]bool
	// transitChecks say why the filter of forwarded packets cannot be set. modelChanged gets a value when frontends or endpoints have changed,
	// filterNow when the filter is to be set again at once, since the dataplane has its rules now.
	transitChecks []dataplane.Check
	modelChanged  chan struct{}
	filterNow     chan struct{}
	// watchdog tries frontends. It is nil if tries are turned off.
	watchdog *watchdog.Watchdog
	tries    *report.Tries
	serving  *report.Served
	silence  report.SilenceTracker
	counters report.Counters
	metrics  *report.Metrics
	writer   *report.Writer
	// targets counts the checked targets, unhealthy are those that do not take traffic.
	targets   int
	unhealthy map[translate.Target]bool
	// served: the dataplane has held everything since this process started, and the filter of forwarded packets knows its rules.
	served bool

	ownership *ownership.Ownership
	// reachability knows which hosts of failed gateways answer.
	reachability  *redirect.Reachability
	countRequests chan countRequest
	// routers is nil unless addresses are announced by BGP.
	routers *routers.Routers
	drain   *drain.State
	// unready is the reason why the gateway cannot serve, nil if it can. Other goroutines read it.
	unready atomic.Pointer[error]
}

// event changes the state of the loop.
type event func(*Gateway)

// New returns a gateway that reads the hub through the cache and writes its own object with the client.
func New(o Options, c cache.Cache, w client.Client) *Gateway {
	if o.Wake == nil {
		o.Wake = NewWake()
	}
	g := &Gateway{options: o, cache: c, client: w, log: o.Log.With("gateway", o.Name), drain: drain.New(o.Log.With("gateway", o.Name)), events: make(chan event, 4096), hub: translate.NewTranslator(),
		pools: map[string]ipam.Pool{}, externalRanges: map[string][]ipam.Range{}, selection: selection.New(), metrics: report.NewMetrics(),
		unhealthy: map[translate.Target]bool{}, countRequests: make(chan countRequest, 1), modelChanged: make(chan struct{}, 1), filterNow: make(chan struct{}, 1)}
	if o.Speaker != nil {
		g.routers = routers.New(routers.Options{Speaker: o.Speaker, Hub: c, Secrets: o.Secrets, Namespace: o.Namespace, Gateway: o.Name, Changed: o.Wake.Up, Log: o.Log})
	}
	g.reachability = redirect.NewReachability(redirect.CheckHost, o.Addresses, o.Wake.Up)
	g.ownership = ownership.New(g.ownershipOptions())
	g.driver = driver.New(driver.Options{Plugin: o.Plugin, Load: o.Load, Model: g.hub, Addresses: g.ownership, Observer: g.metrics, Redirect: g.ownership.Redirect,
		InSync: g.serveFiltered, Log: g.log})
	g.tries, g.serving = report.NewTries(o.Name, o.TryEvery > 0, g.hub.Owner, g.ownership), report.NewServed(o.CheckedInterfaces, o.TryEvery > 0)
	g.writer = report.NewWriter(w, o.Name, o.Labels, o.lease(), g.log)
	g.updateReadiness()
	if o.TryEvery > 0 {
		g.watchdog = g.newWatchdog()
	}
	return g
}

// ownershipOptions returns the options of the gateway's Ownership.
func (g *Gateway) ownershipOptions() ownership.Options {
	o := g.options
	options := ownership.Options{Name: o.Name, Elects: o.Elects, Announcer: o.Announcer, SetTenant: o.SetTenant, Right: o.Right, Selection: g.selection, RedirectDuration: o.RedirectDuration,
		Alive: g.reachability.Alive, Wake: o.Wake.Up}
	if o.Member != nil {
		options.Peers = o.Member
	}
	if g.routers != nil {
		options.Routers = g.routers
	}
	return options
}

// NeedLeaderElection returns false: every gateway works, elected or not.
func (g *Gateway) NeedLeaderElection() bool { return false }

// gatherTime is how long the loop waits for more events before it handles them.
const gatherTime = 15 * time.Millisecond

// Start works until ctx ends.
func (g *Gateway) Start(ctx context.Context) (err error) {
	if err := g.metrics.Register(g.options.Metrics); err != nil {
		return err
	}
	defer g.driver.Stop()
	err = g.run(ctx)
	// After a failure the gateway starts again, and its dataplane keeps its state.
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
		// The dataplane looks for interfaces when it starts, so this comes before. Run tries again after a failure.
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
		runs.Go(func() error { return g.options.Heartbeats.Run(runCtx, g.options.HeartbeatKey(runCtx)) })
	}
	if g.options.LivenessLease != nil {
		runs.Go(func() error { return g.options.LivenessLease.Run(runCtx) })
	}
	if g.routers != nil {
		runs.Go(func() error { return g.routers.Run(runCtx) })
	}
	runs.Go(func() error { return g.reachability.Run(runCtx) })
	runs.Go(func() error { return g.writer.Run(runCtx) })
	runs.Go(func() error { return g.readCounters(runCtx) })
	runs.Go(func() error { return g.watchHost(runCtx) })
	runs.Go(func() error { return g.driver.Run(runCtx, g.post) })
	runs.Go(func() error { return g.runTransitFilter(runCtx) })
	runs.Go(func() error { return g.loop(runCtx, synced) })
	return runs.Wait()
}

// Shutdown makes the gateway drain before it ends: peers take over, and then it waits for connections that would end with it, for DrainTimeout at
// most. It waits for nothing if no peer takes over, or if it has not served yet.
func (g *Gateway) Shutdown(ctx context.Context) {
	g.drain.Shutdown.Request()
	if g.options.DrainTimeout == 0 || g.Ready(nil) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, g.options.DrainTimeout)
	defer cancel()
	g.send(ctx, func(g *Gateway) { g.drain.Shutdown.Begin() })
	if !g.drain.Shutdown.Wait(ctx) {
		g.log.Warn("the gateway ends after --drain-timeout, although connections may be left", "drain-timeout", g.options.DrainTimeout)
	}
}

// decommission notes that the DaemonSet of PurgeWith is deleted.
func (g *Gateway) decommission() {
	if g.drain.Decommission() {
		g.log.Info("the DaemonSet is deleted: the gateway purges its dataplane when it ends", "daemonset", g.options.PurgeWith)
	}
}

// errStarting is why a gateway is not ready that has just started.
var errStarting = errors.New("the dataplane does not hold everything yet")

// Ready is a readiness check. It returns the reason why the gateway cannot serve.
func (g *Gateway) Ready(*http.Request) error { return *g.unready.Load() }

func (g *Gateway) updateReadiness() {
	var unready error
	switch {
	case g.driver.Problem() != nil:
		unready = fmt.Errorf("dataplane: %w", g.driver.Problem())
	case !g.served:
		unready = errStarting
	}
	g.unready.Store(&unready)
}

// elect decides again which addresses this gateway answers for.
func (g *Gateway) elect(ctx context.Context) {
	s := ownership.State{Served: g.served, Draining: g.drain.Draining(), WithdrawDelayOver: g.drain.WithdrawDelayOver(time.Now())}
	if slices.Contains(g.driver.Description().Features, dataplane.Redirects) {
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

// query calls a function in the loop, and returns its result. It returns false if ctx ends first.
func query[T any](ctx context.Context, g *Gateway, f func(*Gateway) T) (result T, ok bool) {
	results := make(chan T, 1)
	g.send(ctx, func(g *Gateway) { results <- f(g) })
	select {
	case result = <-results:
		return result, true
	case <-ctx.Done():
		return result, false
	}
}

// purgeLimit bounds the purge of a gateway that goes for good.
const purgeLimit = 30 * time.Second

func (g *Gateway) purge() error {
	ctx, cancel := context.WithTimeout(context.Background(), purgeLimit)
	defer cancel()
	if err := g.driver.Purge(ctx); err != nil {
		return err
	}
	if err := g.removeTransitFilter(); err != nil {
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
				timer.Reset(gatherTime)
			}
			continue
		case <-g.options.Wake:
		case process := <-g.driver.Ended():
			if !g.driver.HandleEnd(process) {
				continue
			}
		case <-timer.C:
		}
		g.handleEvents()
		gathering = false
		if !g.isSynced(synced) {
			timer.Reset(gatherTime)
			continue
		}
		g.work(ctx)
		g.count()
		g.drain.Shutdown.FinishIfDone(g.ownership.IsReplaced)
		if timer.Reset(g.pause()); g.changedDuringCall {
			timer.Reset(gatherTime)
		}
	}
}

// isSynced reports whether all first lists were read. Nothing is sent to the plugin before: an empty model would empty the dataplane.
func (g *Gateway) isSynced(synced func() bool) bool {
	if !g.synced && synced() {
		g.synced = true
		g.handleEvents() // the last events may belong to the first lists, too
	}
	return g.synced
}

// handleEvents handles all waiting events.
func (g *Gateway) handleEvents() {
	for {
		select {
		case e := <-g.events:
			e(g)
		default:
			return
		}
	}
}

// settleInterval is how often the loop runs while decisions may change only because time passes.
const settleInterval = 250 * time.Millisecond

// pause returns how long the loop may wait if nothing happens.
func (g *Gateway) pause() time.Duration {
	pause := report.CountInterval
	if now := time.Now(); g.ownership.IsSettling(now) || g.drain.Draining() && g.drain.DrainingFor(now) < 2*drain.WithdrawDelay {
		pause = settleInterval
	}
	if expiry := g.ownership.NextRedirectExpiry(); !expiry.IsZero() {
		pause = min(pause, max(time.Millisecond, time.Until(expiry)))
	}
	if at := g.driver.RetryAt(); !at.IsZero() {
		pause = min(pause, max(0, time.Until(at)))
	}
	pause = g.drain.NextUpdateIn(pause, time.Now())
	if at := g.silence.Next(); !at.IsZero() {
		pause = min(pause, max(time.Millisecond, time.Until(at)))
	}
	if g.driver.HasWork() {
		pause = 0
	}
	return pause
}

// work brings the dataplane, the prober and the announcer to the present model, and publishes the result.
func (g *Gateway) work(ctx context.Context) {
	g.drain.Update(time.Now(), g.ownership.IsReplaced)
	g.updateHosts(time.Now())
	changes := g.hub.Flush()
	g.changedDuringCall = false
	if !changes.Model.Empty() {
		g.noteModelChange()
	}
	g.targets += len(changes.NewTargets) - len(changes.GoneTargets)
	for _, t := range changes.GoneTargets {
		g.prober.Remove(t)
		delete(g.unhealthy, t)
	}
	for _, t := range changes.NewTargets {
		g.prober.Add(t)
	}
	g.driver.Sync(ctx, changes.Model, g.seenVersion)
	g.updateReadiness()
	g.driver.Recheck()
	g.elect(ctx)
	g.publish()
}

// duringCallInterval is how often the loop elects and publishes while the plugin is called.
const duringCallInterval = 250 * time.Millisecond

// duringCall does what cannot wait for a call of the plugin: it handles events, elects and publishes. Changes of the model are sent to the plugin
// after the call.
func (g *Gateway) duringCall(ctx context.Context, done <-chan struct{}) {
	ticker := time.NewTicker(duringCallInterval)
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

// setHealth takes over a result of the prober. The target may not be checked any more.
func (g *Gateway) setHealth(r probe.Result) {
	g.hub.SetHealth(r.Target, r.Health)
	if r.Health.State == model.Unhealthy && g.hub.HasTarget(r.Target) {
		g.unhealthy[r.Target] = true
	} else {
		delete(g.unhealthy, r.Target)
	}
}
