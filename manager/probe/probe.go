// Package probe finds out which nodes can take traffic. One check serves all Services of a node; what it finds counts for
// UDP as well as for TCP.
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

// Config bounds the checks. A dead node is out after at most Interval + Failures x Timeout + the pauses between failures, a
// tenth of Interval each: under three seconds with the defaults.
type Config struct {
	// Interval between two checks of one target; Timeout of one check.
	Interval, Timeout time.Duration
	// Failures in a row that make a target unhealthy; one success makes it healthy again.
	Failures int
	// AtOnce is how many checks there may be at the same time in each lane. Tenants share them, see lane.
	AtOnce int
}

// DefaultConfig checks every second and gives up after two failures.
func DefaultConfig() Config {
	return Config{Interval: time.Second, Timeout: 800 * time.Millisecond, Failures: 2, AtOnce: 512}
}

// kubeProxyHealthPort is where kube-proxy answers /healthz by default.
const kubeProxyHealthPort = 10256

// Result is a target whose health has changed.
type Result struct {
	Target translate.Target
	Health translate.Health
}

// Prober checks targets in turn. Make one with New and let it Run.
type Prober struct {
	config Config
	report func(Result)
	http   http.Client

	// weights are those of tenants, which the scheduler alone knows.
	weights map[string]*weights

	mu sync.Mutex // guards changes
	// changes wait for the scheduler, which changed wakes up. Whoever makes them need not wait: it may be the one that takes reports.
	changes []change
	changed chan struct{}
}

type change struct {
	target translate.Target
	gone   bool
}

// New returns a prober that calls report, from one goroutine, whenever a target's health changes. A new target counts as
// healthy until it fails; of a healthy one that tells its weight the first answer is a change.
func New(config Config, report func(Result)) *Prober {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: config.Timeout}).DialContext, MaxResponseHeaderBytes: mostAnswer}
	// What answers is a tenant's: it must not have the gateway ask others, such as services on its own host.
	followNone := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Prober{config: config, report: report, changed: make(chan struct{}, 1), weights: map[string]*weights{},
		http: http.Client{Transport: transport, Timeout: config.Timeout, CheckRedirect: followNone}}
}

// mostAnswer is how many bytes of an answer are read, of its header as of its body.
const mostAnswer = 64 << 10

// Watch begins to check a target; Forget ends it. Neither blocks.
func (p *Prober) Watch(t translate.Target) { p.note(change{target: t}) }

// Forget ends the checks of a target.
func (p *Prober) Forget(t translate.Target) { p.note(change{t, true}) }

func (p *Prober) note(c change) {
	p.mu.Lock()
	p.changes = append(p.changes, c)
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// noted are the changes since it was asked last.
func (p *Prober) noted() []change {
	p.mu.Lock()
	defer p.mu.Unlock()
	noted := p.changes
	p.changes = nil
	return noted
}

type outcome struct {
	job    *job
	health translate.Health
	err    error
	took   time.Duration
}

// Run schedules checks until ctx ends; all have ended when it returns.
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

func (p *Prober) schedule(ctx context.Context, done <-chan outcome, check func(*job)) {
	jobs, in := map[translate.Target]*job{}, newLanes(p.config.AtOnce)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		timer.Reset(in.begin(now, check))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case o := <-done:
			o.job.lane.end(o.job)
			p.settle(o)
			if !o.job.gone {
				in.after(o, p.config.Timeout).add(o.job)
			}
		case <-p.changed:
			for _, c := range p.noted() {
				p.change(c, jobs, in.doubtful)
			}
		}
	}
}

func (p *Prober) change(c change, jobs map[translate.Target]*job, fresh *lane) {
	known := jobs[c.target]
	switch {
	case c.gone && known != nil:
		delete(jobs, c.target)
		known.lane.forget(known)
		if w := p.weightsOf(known); w.jobs == 1 {
			delete(p.weights, c.target.Tenant)
		} else {
			w.jobs--
		}
	case !c.gone && known == nil:
		j := &job{target: c.target, due: time.Now()}
		jobs[c.target] = j
		fresh.add(j)
		p.weightsOf(j).jobs++
	}
}

// settle takes a check's outcome into the job and reports what changed.
func (p *Prober) settle(o outcome) {
	j, health := o.job, o.health
	if j.gone {
		return
	}
	j.due = time.Now().Add(p.config.Interval)
	if o.err == nil {
		j.failures = 0
	} else if j.failures++; j.failures < p.config.Failures {
		// One lost packet is no reason, but a reason to ask again soon.
		j.due = time.Now().Add(p.config.Interval / 10)
		return
	} else {
		health = translate.Health{State: model.Unhealthy, Weight: j.health.Weight}
	}
	if health != j.health && p.tells(j, health, time.Now()) {
		j.health = health
		p.report(Result{j.target, health})
	}
}

// check asks one target. An error is a failure; a healthy answer may carry a weight or say that the node drains.
func (p *Prober) check(ctx context.Context, t translate.Target) (translate.Health, error) {
	switch t.Kind {
	case translate.CheckLocal:
		return p.localEndpoints(ctx, t)
	case translate.CheckConnect:
		return translate.Health{}, p.connect(ctx, net.JoinHostPort(t.Address.String(), strconv.Itoa(int(t.Port))))
	}
	return p.node(ctx, t)
}

// node asks kube-proxy. 503 says that the node is about to go (KEP-3836): its flows may end, new ones go elsewhere. A node
// that refuses the connection is alive, with a kube-proxy that answers elsewhere; one that is silent is dead.
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

// localEndpoints asks healthCheckNodePort; kube-proxy says how many local endpoints there are.
func (p *Prober) localEndpoints(ctx context.Context, t translate.Target) (translate.Health, error) {
	response, err := p.get(ctx, net.JoinHostPort(t.Address.String(), strconv.Itoa(int(t.Port))))
	if err != nil {
		return translate.Health{}, err
	}
	if response.StatusCode != http.StatusOK {
		// No local endpoint that is ready: the beginning of a drain. Established flows go on.
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
	_, err = io.CopyN(io.Discard, response.Body, mostAnswer)
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
