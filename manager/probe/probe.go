// Package probe checks which nodes can take traffic. All Services of a node share one check, and its result counts for UDP as well as for TCP.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// Config bounds the checks. A dead node is unhealthy after at most Interval + Failures × Timeout + the pauses between failures, which are a tenth of
// Interval each. With the defaults this is less than three seconds.
type Config struct {
	// Interval is the time between two checks of a target, Timeout the limit of one check.
	Interval, Timeout time.Duration
	// Failures is how many failures in a row make a target unhealthy. One success makes it healthy again.
	Failures int
	// MaxConcurrent is how many checks of each queue may run at the same time. Tenants share them, see queue.
	MaxConcurrent int
}

// DefaultConfig checks every second. Two failures make a target unhealthy.
func DefaultConfig() Config {
	return Config{Interval: time.Second, Timeout: 800 * time.Millisecond, Failures: 2, MaxConcurrent: 512}
}

// kubeProxyHealthPort is the default port at which kube-proxy answers /healthz.
const kubeProxyHealthPort = 10256

// Result is the new health of a target.
type Result struct {
	Target translate.Target
	Health translate.Health
}

// Prober checks targets again and again. Create one with New, and call Run.
type Prober struct {
	config Config
	report func(Result)
	http   http.Client

	// weights limits the reports of weights, by tenant. Only the scheduler uses it.
	weights map[string]*weightReports

	mu sync.Mutex // guards changes
	// changes wait for the scheduler, which changed wakes up. Add and Remove do not block: their caller may be the receiver of reports, for which the
	// scheduler waits.
	changes []change
	changed chan struct{}
}

type change struct {
	target  translate.Target
	removed bool
}

// New returns a prober that calls report, from one goroutine, whenever the health of a target changes. A new target counts as healthy until it fails.
// The first weight of a target is a change.
func New(config Config, report func(Result)) *Prober {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: config.Timeout}).DialContext, MaxResponseHeaderBytes: maxResponseBytes}
	// The tenant controls the answer. Following a redirect would let the tenant reach services on the gateway's own host.
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Prober{config: config, report: report, changed: make(chan struct{}, 1), weights: map[string]*weightReports{},
		http: http.Client{Transport: transport, Timeout: config.Timeout, CheckRedirect: noRedirect}}
}

// maxResponseBytes bounds what is read of a response: of its headers, and of its body.
const maxResponseBytes = 64 << 10

// Add starts the checks of a target. It does not block.
func (p *Prober) Add(t translate.Target) { p.enqueue(change{target: t}) }

// Remove ends the checks of a target. It does not block.
func (p *Prober) Remove(t translate.Target) { p.enqueue(change{t, true}) }

func (p *Prober) enqueue(c change) {
	p.mu.Lock()
	p.changes = append(p.changes, c)
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// takeChanges returns the changes since the last call.
func (p *Prober) takeChanges() []change {
	p.mu.Lock()
	defer p.mu.Unlock()
	changes := p.changes
	p.changes = nil
	return changes
}

type outcome struct {
	job    *job
	health translate.Health
	err    error
	took   time.Duration
}

// Run schedules checks until ctx ends. It returns after the last check has ended.
func (p *Prober) Run(ctx context.Context) error {
	var checks sync.WaitGroup
	defer checks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan outcome)
	p.schedule(ctx, done, func(j *job) {
		target := j.target
		checks.Go(func() {
			began := time.Now()
			health, err := p.check(ctx, target)
			select {
			case done <- outcome{j, health, err, time.Since(began)}:
			case <-ctx.Done():
			}
		})
	})
	return nil
}

func (p *Prober) schedule(ctx context.Context, done <-chan outcome, start func(*job)) {
	jobs, queues := map[translate.Target]*job{}, newQueues(p.config.MaxConcurrent)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		timer.Reset(queues.start(now, start))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case o := <-done:
			o.job.queue.finish(o.job)
			p.handleOutcome(o)
			if !o.job.removed {
				queues.queueFor(o, p.config.Timeout).add(o.job)
			}
		case <-p.changed:
			for _, c := range p.takeChanges() {
				p.change(c, jobs, queues.other)
			}
		}
	}
}

func (p *Prober) change(c change, jobs map[translate.Target]*job, initial *queue) {
	known := jobs[c.target]
	switch {
	case c.removed && known != nil:
		delete(jobs, c.target)
		known.queue.cancel(known)
		if w := p.weightReportsOf(known); w.jobs == 1 {
			delete(p.weights, c.target.Tenant)
		} else {
			w.jobs--
		}
	case !c.removed && known == nil:
		j := &job{target: c.target, due: time.Now()}
		jobs[c.target] = j
		initial.add(j)
		p.weightReportsOf(j).jobs++
	}
}

// handleOutcome applies the outcome of a check to its job, and reports a change.
func (p *Prober) handleOutcome(o outcome) {
	j, health := o.job, o.health
	if j.removed {
		return
	}
	j.due = time.Now().Add(p.config.Interval)
	if o.err == nil {
		j.failures = 0
	} else if j.failures++; j.failures < p.config.Failures {
		// A single packet may get lost: check again soon.
		j.due = time.Now().Add(p.config.Interval / 10)
		return
	} else {
		health = translate.Health{State: model.Unhealthy, Weight: j.health.Weight}
	}
	if health != j.health && p.shouldReport(j, health, time.Now()) {
		j.health = health
		p.report(Result{j.target, health})
	}
}

// check checks one target once. An error is a failure. A healthy answer may carry a weight, or say that the node drains.
func (p *Prober) check(ctx context.Context, t translate.Target) (translate.Health, error) {
	switch t.Kind {
	case translate.CheckLocal:
		return p.localEndpoints(ctx, t)
	case translate.CheckConnect:
		return translate.Health{}, p.connect(ctx, net.JoinHostPort(t.Address.String(), strconv.Itoa(int(t.Port))))
	}
	return p.node(ctx, t)
}

// node asks kube-proxy. Status 503 means that the node is about to be removed (KEP-3836): existing flows may end, and new flows go to other nodes. A
// node that refuses the connection is alive: its kube-proxy uses another port. A silent node is dead.
func (p *Prober) node(ctx context.Context, t translate.Target) (translate.Health, error) {
	response, err := p.get(ctx, net.JoinHostPort(t.Address.String(), strconv.Itoa(kubeProxyHealthPort)))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return translate.Health{}, nil
	}
	if err != nil {
		return translate.Health{}, err
	}
	if response.StatusCode == http.StatusServiceUnavailable {
		return translate.Health{State: model.Draining}, nil
	}
	return translate.Health{}, nil
}

// localEndpoints asks the healthCheckNodePort, where kube-proxy returns the number of local endpoints.
func (p *Prober) localEndpoints(ctx context.Context, t translate.Target) (translate.Health, error) {
	response, err := p.get(ctx, net.JoinHostPort(t.Address.String(), strconv.Itoa(int(t.Port))))
	if err != nil {
		return translate.Health{}, err
	}
	if response.StatusCode != http.StatusOK {
		// No local endpoint is ready. The node gets no new flows, and existing flows go on.
		return translate.Health{State: model.Draining}, nil
	}
	weight, err := strconv.ParseUint(response.Header.Get("X-Load-Balancing-Endpoint-Weight"), 10, 16)
	if err != nil || weight == 0 {
		weight = 1
	}
	return translate.Health{Weight: uint16(weight)}, nil
}

func (p *Prober) get(ctx context.Context, hostPort string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+hostPort+"/healthz", nil)
	if err != nil {
		return nil, err
	}
	response, err := p.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	_, err = io.CopyN(io.Discard, response.Body, maxResponseBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", hostPort, err)
	}
	return response, nil
}

func (p *Prober) connect(ctx context.Context, hostPort string) error {
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", hostPort)
	if err != nil {
		return err
	}
	return c.Close()
}
