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
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/bgp"
	"kubelb.k8c.io/manager/heartbeat"
	"kubelb.k8c.io/manager/membership"
	"kubelb.k8c.io/manager/probe"
	"kubelb.k8c.io/manager/selection"
)

// Options are what a gateway needs to know.
type Options struct {
	Name string
	// Labels are for the Gateway object, by which AddressPools choose gateways.
	Labels    map[string]string
	Backend   BackendOptions
	Forbidden []netip.Prefix
	Announcer announce.Announcer
	// Member is told of other gateways, and by its lease whether this one may answer; nil where it may always.
	Member *membership.Member
	// Elects: of the members one answers for each address; otherwise every gateway announces every address.
	Elects bool
	// Speaker is the announcer where that is by BGP, else nil. Passwords of its peers are in Secrets of the namespace.
	Speaker   *bgp.Speaker
	Secrets   client.Reader
	Namespace string
	// Addresses are this gateway's own on the segment, where other gateways send packets of connections that it may know. For Handover
	// after a gateway has gone, or lost an address, it is asked about such connections.
	Addresses func() []netip.Addr
	Handover  time.Duration
	// Heart is heard by other gateways on the segment, with a key that SegmentKey waits for; both belong to Member.
	Heart      *heartbeat.Heart
	SegmentKey func(context.Context) ([]byte, error)
	// KeepWhenAlone: without the API, and without another gateway on the segment, it goes on to answer.
	KeepWhenAlone bool
	Probe         probe.Config
	// PurgeOnExit removes everything from the dataplane when the gateway ends: it leaves for good.
	PurgeOnExit bool
	// PurgeWith names the DaemonSet whose deletion means the same; empty for none. The cache is to know of it, see WatchDaemonSet.
	PurgeWith string
	// Metrics takes what Prometheus is told; nil for nobody.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Gateway is a runnable of the manager. Make one with New.
type Gateway struct {
	options Options
	cache   cache.Cache
	client  client.Client
	log     *slog.Logger

	events chan event
	prober *probe.Prober
	hub    *translate.Hub
	host   *host
	pools  map[string]ipam.Pool
	// selection is which gateways serve which pools.
	selection *selection.Selection
	seen      uint64 // the highest resourceVersion of a LoadBalancer
	fails     map[string]failure
	status    chan v1alpha1.GatewayStatus
	synced    bool
	retryAt   time.Time
	backoff   time.Duration
	// problem is why the backend holds nothing new, until it does again.
	problem error
	// inSync is told when the backend holds everything, leftovers are why former backends could not be purged, by name.
	inSync    chan struct{}
	leftovers map[string]string
	// held are the frontends that the dataplane holds, vips how many of them each address has.
	held map[model.FrontendKey]bool
	vips map[netip.Addr]int
	// targets is how many are checked, unhealthy are those of them that do not take traffic.
	targets   int
	unhealthy map[translate.Target]bool
	// served: the dataplane has held everything since this process began.
	served    bool
	answering answering
	metrics   *metrics
	vitals    *vitals
	// counted is when the dataplane's counters were asked for last, by counts; counting: that is under way. use is what tenants use of
	// their limits by that.
	counted  time.Time
	counts   chan countRequest
	counting bool
	use      []v1alpha1.GatewayTenantUse
	// routers is there where addresses are announced by BGP.
	routers *routers
	// drainedSince is when the operator's wish came that this gateway drains; zero for no such wish.
	drainedSince time.Time
	// poke wakes up the loop: what it answers for may have changed.
	poke chan struct{}
	// unready is why the gateway is of no use, nil when it is. Other goroutines ask.
	unready atomic.Pointer[error]
	// abandoned: the DaemonSet is deleted that PurgeWith names.
	abandoned atomic.Bool
}

// failure is a record that the dataplane did not take.
type failure struct {
	owner   string
	message string
}

// event changes the loop's state.
type event func(*Gateway)

// New returns a gateway that reads the hub through the cache and writes its own object with the client.
func New(o Options, c cache.Cache, w client.Client) *Gateway {
	g := &Gateway{options: o, cache: c, client: w, log: o.Log.With("gateway", o.Name), events: make(chan event, 4096), hub: translate.NewHub(),
		pools: map[string]ipam.Pool{}, selection: selection.New(), fails: map[string]failure{}, status: make(chan v1alpha1.GatewayStatus, 1), inSync: make(chan struct{}, 1),
		unhealthy: map[translate.Target]bool{}, held: map[model.FrontendKey]bool{}, vips: map[netip.Addr]int{}, poke: make(chan struct{}, 1), counts: make(chan countRequest, 1),
		answering: answering{elects: o.Elects, member: o.Member, answers: map[netip.Addr]bool{},
			handover: newHandover(o.Handover), ring: newRing(o.Name, o.Handover)}}
	if o.Member != nil {
		g.answering.permit = &permit{lease: o.Member, segment: o.Heart, keepWhenAlone: o.KeepWhenAlone, shared: !o.Elects, changed: g.Elect, log: g.log}
	}
	g.vitals = newVitals(askHost, o.Addresses, g.Elect)
	g.noteReadiness()
	if o.Speaker != nil {
		g.routers = newRouters(o, c, g.Elect)
	}
	return g
}

// NeedLeaderElection: every gateway works, elected or not.
func (g *Gateway) NeedLeaderElection() bool { return false }

// gather is how long the loop waits for more changes before it sends what it has.
const gather = 15 * time.Millisecond

// retryFailed is how often records that the dataplane refused are sent again.
const retryFailed = 30 * time.Second

// Start works until ctx ends.
func (g *Gateway) Start(ctx context.Context) (err error) {
	if g.metrics, err = newMetrics(g.options.Metrics); err != nil {
		return err
	}
	ended := make(chan *plugin.Process, 4)
	g.host = &host{options: g.options.Backend, log: g.log, metrics: g.metrics, epoch: strconv.FormatInt(time.Now().UnixNano(), 36), ended: ended}
	defer g.host.stop()
	err = g.run(ctx, ended)
	// One that fails starts again; what its dataplane holds stays.
	if (g.options.PurgeOnExit || g.abandoned.Load()) && ctx.Err() != nil {
		err = errors.Join(err, g.purge())
	}
	return err
}

func (g *Gateway) run(ctx context.Context, ended <-chan *plugin.Process) error {
	runs, runCtx := errgroup.WithContext(ctx)
	g.prober = probe.New(g.options.Probe, func(r probe.Result) {
		g.send(runCtx, func(g *Gateway) { g.setHealth(r) })
	})
	synced, err := g.watch(runCtx)
	if err != nil {
		return err
	}
	if g.options.PurgeWith != "" {
		if err := g.watchDaemonSet(runCtx); err != nil {
			return err
		}
	}
	runs.Go(func() error { return g.prober.Run(runCtx) })
	runs.Go(func() error { return g.options.Announcer.Run(runCtx) })
	if g.options.Member != nil {
		runs.Go(func() error { return g.options.Member.Run(runCtx) })
		runs.Go(func() error { return g.answering.permit.run(runCtx) })
		runs.Go(func() error {
			key, err := g.options.SegmentKey(runCtx)
			if err != nil {
				return err
			}
			return g.options.Heart.Run(runCtx, key)
		})
	}
	if g.routers != nil {
		runs.Go(func() error { return g.routers.run(runCtx) })
	}
	runs.Go(func() error { return g.vitals.run(runCtx) })
	runs.Go(func() error { return g.writeStatus(runCtx) })
	runs.Go(func() error { return g.readCounters(runCtx) })
	runs.Go(func() error { return g.purgePredecessors(runCtx) })
	runs.Go(func() error { return g.loop(runCtx, synced, ended) })
	return runs.Wait()
}

// errStarting is why a gateway is not ready that has just begun.
var errStarting = errors.New("the dataplane does not hold everything yet")

// Ready is a readiness check: it says why the gateway is of no use, be it for now.
func (g *Gateway) Ready(*http.Request) error { return *g.unready.Load() }

func (g *Gateway) noteReadiness() {
	var unready error
	switch {
	case g.problem != nil:
		unready = fmt.Errorf("backend: %w", g.problem)
	case !g.served:
		unready = errStarting
	}
	g.unready.Store(&unready)
}

// MayAnswer tells whether this gateway may answer for addresses at all, as of now.
func (g *Gateway) MayAnswer() bool { return g.answering.permit == nil || g.answering.permit.may() }

// Elect has the gateway look again at what it answers for. It does not block.
func (g *Gateway) Elect() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
}

// send hands an event to the loop.
func (g *Gateway) send(ctx context.Context, e event) {
	select {
	case g.events <- e:
	case <-ctx.Done():
	}
}

func (g *Gateway) purge() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// One that was told to end before it had begun has to remove what another process left.
	if !g.host.running() {
		if err := g.host.start(ctx); err != nil {
			return fmt.Errorf("purge: %w", err)
		}
	}
	if err := g.host.process.Close(ctx, true); err != nil {
		return err
	}
	return g.options.Backend.holders().strike(g.options.Backend.name())
}

func (g *Gateway) loop(ctx context.Context, synced func() bool, ended <-chan *plugin.Process) error {
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
		case <-g.poke:
		case process := <-ended:
			if process != g.host.process {
				continue
			}
			g.log.Warn("backend ended or lost its state; starting it again")
			g.restartLater()
		case <-timer.C:
		}
		g.drain()
		gathering = false
		if g.synced = g.synced || synced(); !g.synced {
			// Nothing is sent before everything is known: an empty model would empty the dataplane.
			timer.Reset(gather)
			continue
		}
		g.work(ctx)
		g.count()
		timer.Reset(g.pause())
	}
}

// drain takes all events that are there.
func (g *Gateway) drain() {
	for {
		select {
		case e := <-g.events:
			e(g)
		default:
			return
		}
	}
}

// pause is how long nothing needs to be done unless something happens.
func (g *Gateway) pause() time.Duration {
	pause := countEvery
	if g.answering.undecided() || g.draining() && time.Since(g.drainedSince) < 2*Notice || time.Since(g.answering.ring.since) < 2*Notice {
		pause = returnAfter / 20
	}
	for _, ends := range []time.Time{g.answering.handover.ends(), g.answering.ring.ends()} {
		if !ends.IsZero() {
			pause = min(pause, max(time.Millisecond, time.Until(ends)))
		}
	}
	if !g.retryAt.IsZero() {
		pause = min(pause, max(0, time.Until(g.retryAt)))
	}
	return pause
}

// work brings backend, prober and announcer to the present model and publishes what came of it.
func (g *Gateway) work(ctx context.Context) {
	changes := g.hub.Flush()
	g.targets += len(changes.NewTargets) - len(changes.GoneTargets)
	for _, t := range changes.GoneTargets {
		g.prober.Forget(t)
		delete(g.unhealthy, t)
	}
	for _, t := range changes.NewTargets {
		g.prober.Watch(t)
	}
	g.withdraw(changes.Model)
	if err := g.program(ctx, changes.Model); err != nil {
		g.log.Error("backend", "error", err)
		g.problem = err
		g.restartLater()
	}
	g.noteReadiness()
	g.elect(ctx)
	g.publish()
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

// countEvery is how often the dataplane's counters are read.
const countEvery = 15 * time.Second

// countRequest asks for the counters, which were asked for so long ago before.
type countRequest struct {
	process *plugin.Process
	ago     time.Duration
}

// count has the dataplane's counters be read now and then. With many frontends that takes longer than anything else may have to wait.
func (g *Gateway) count() {
	if !g.served || !g.host.running() || g.counting || time.Since(g.counted) < countEvery {
		return
	}
	request := countRequest{g.host.process, time.Since(g.counted)}
	g.counted, g.counting = time.Now(), true
	g.counts <- request
}

// readCounters reads them, each time that it is asked to, until ctx ends.
func (g *Gateway) readCounters(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case request := <-g.counts:
			limited, cancel := context.WithTimeout(ctx, countEvery)
			stats, err := request.process.Stats(limited)
			cancel()
			g.send(ctx, func(g *Gateway) { g.tally(stats, request.ago, err) })
		}
	}
}

// tally takes over the counters.
func (g *Gateway) tally(stats dataplane.Stats, ago time.Duration, err error) {
	g.counting = false
	if err != nil {
		g.log.Warn("read the dataplane's counters", "error", err)
		return
	}
	g.use = useOf(g.hub.Snapshot().Frontends, stats.Frontends, g.metrics.last, ago)
	g.metrics.add(stats, g.tenantOf)
}

// tenantOf is whose the frontend is; nobody's if empty.
func (g *Gateway) tenantOf(key model.FrontendKey) string {
	owner, known := g.hub.Owner(key)
	tenant, is := translate.TenantOf(owner.Namespace)
	if !known || !is {
		return ""
	}
	return tenant
}

// restartLater ends the process and sets the time of the next try: at once for the first, then ever later.
func (g *Gateway) restartLater() {
	g.host.stop()
	g.retryAt = time.Now().Add(g.backoff)
	g.backoff = min(max(2*g.backoff, 250*time.Millisecond), 30*time.Second)
}

// program applies the delta; a backend that does not run, or lost its place, gets the difference to what it holds instead.
func (g *Gateway) program(ctx context.Context, d model.Delta) error {
	due := !g.retryAt.IsZero() && !time.Now().Before(g.retryAt)
	if !g.host.running() {
		if !g.retryAt.IsZero() && !due {
			return nil
		}
		if err := g.host.start(ctx); err != nil {
			return err
		}
		return g.resync(ctx)
	}
	if due {
		return g.resync(ctx)
	}
	if d.Empty() {
		return nil
	}
	accepted, refused := g.supported(d)
	failed, err := g.host.apply(ctx, accepted)
	if isResync(err) {
		return g.resync(ctx)
	}
	if err != nil {
		return err
	}
	g.note(d, append(refused, failed...))
	return nil
}

func (g *Gateway) resync(ctx context.Context) error {
	want := g.hub.Snapshot()
	all := model.Delta{UpsertPools: want.Pools, UpsertFrontends: want.Frontends}
	accepted, refused := g.supported(all)
	failed, sent, err := g.host.resync(ctx, model.Snapshot{Pools: accepted.UpsertPools, Frontends: accepted.UpsertFrontends})
	if err != nil {
		return err
	}
	g.log.Info("backend in sync", "backend", g.host.description.Name, "records", len(want.Pools)+len(want.Frontends), "sent", sent, "failed", len(failed))
	g.retryAt, g.backoff, g.problem, g.served = time.Time{}, 0, nil, true
	clear(g.fails)
	g.note(all, append(refused, failed...))
	select {
	case g.inSync <- struct{}{}:
	default:
	}
	return nil
}

// supported keeps back what needs a feature that the backend does not have: it is refused, never half done.
func (g *Gateway) supported(d model.Delta) (model.Delta, []dataplane.RecordError) {
	var refused []dataplane.RecordError
	kept := make([]model.Frontend, 0, len(d.UpsertFrontends))
	for _, f := range d.UpsertFrontends {
		if lacking, ok := g.host.description.Lacks(f); ok {
			refused = append(refused, dataplane.RecordError{Frontend: f.FrontendKey,
				Message: fmt.Sprintf("the %s backend does not support %s", g.host.description.Name, lacking)})
			d.DeleteFrontends = append(d.DeleteFrontends, f.FrontendKey)
			continue
		}
		kept = append(kept, g.facing(f))
	}
	d.UpsertFrontends = kept
	// One that was served before is about to leave the dataplane; without this its address would still be answered for.
	g.withdraw(model.Delta{DeleteFrontends: d.DeleteFrontends, UpsertFrontends: kept})
	return d, refused
}

// note remembers which records failed, and forgets those that went well.
func (g *Gateway) note(sent model.Delta, failed []dataplane.RecordError) {
	for _, p := range sent.UpsertPools {
		delete(g.fails, dataplane.RecordError{Pool: p.ID}.Record())
	}
	for _, id := range sent.DeletePools {
		delete(g.fails, dataplane.RecordError{Pool: id}.Record())
	}
	for _, f := range sent.UpsertFrontends {
		delete(g.fails, dataplane.RecordError{Frontend: f.FrontendKey}.Record())
	}
	for _, key := range sent.DeleteFrontends {
		delete(g.fails, dataplane.RecordError{Frontend: key}.Record())
	}
	for _, e := range failed {
		f := failure{message: e.Message}
		if owner, ok := g.hub.Owner(e.Frontend); ok && e.Pool == "" {
			f.owner = owner.String()
		}
		g.fails[e.Record()] = f
		g.log.Warn("record refused", "record", e.Record(), "reason", e.Message)
	}
	if len(g.fails) > 0 && g.retryAt.IsZero() {
		g.retryAt = time.Now().Add(retryFailed)
	}
	g.announce(sent)
}

// withdraw stops to answer for addresses whose last frontend is about to leave the dataplane.
func (g *Gateway) withdraw(d model.Delta) {
	coming := map[netip.Addr]bool{}
	for _, f := range d.UpsertFrontends {
		coming[f.VIP] = true
	}
	for _, key := range d.DeleteFrontends {
		if !g.held[key] {
			continue
		}
		delete(g.held, key)
		if g.vips[key.VIP]--; g.vips[key.VIP] > 0 {
			continue
		}
		delete(g.vips, key.VIP)
		if !coming[key.VIP] {
			g.options.Announcer.Withdraw(key.VIP)
			delete(g.answering.answers, key.VIP)
			g.answering.handover.forget(key.VIP)
			g.answering.ring.forget(key.VIP)
		}
	}
}

// announce notes the addresses of frontends that the dataplane has confirmed: they may be answered for.
func (g *Gateway) announce(d model.Delta) {
	for _, f := range d.UpsertFrontends {
		_, failed := g.fails[dataplane.RecordError{Frontend: f.FrontendKey}.Record()]
		if failed || g.held[f.FrontendKey] {
			continue
		}
		g.held[f.FrontendKey] = true
		if g.vips[f.VIP]++; g.vips[f.VIP] == 1 {
			g.answering.answers[f.VIP] = g.answering.answers[f.VIP]
			g.answering.fresh = append(g.answering.fresh, f.VIP)
		}
	}
}
