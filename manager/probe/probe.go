// Package probe finds out which nodes can take traffic. One check serves all Services of a node; what it finds counts for
// UDP as well as for TCP.
package probe

import (
	"container/heap"
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
	// Workers check at the same time.
	Workers int
}

// DefaultConfig checks every second and gives up after two failures.
func DefaultConfig() Config {
	return Config{Interval: time.Second, Timeout: 800 * time.Millisecond, Failures: 2, Workers: 64}
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
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: config.Timeout}).DialContext}
	return &Prober{config: config, report: report, changed: make(chan struct{}, 1), http: http.Client{Transport: transport, Timeout: config.Timeout}}
}

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

// job is one target with its schedule; it belongs to the scheduler but while a worker has it.
type job struct {
	target   translate.Target
	due      time.Time
	failures int
	health   translate.Health
	index    int // in the heap; -1 while a worker has it
	gone     bool
}

type outcome struct {
	job    *job
	health translate.Health
	err    error
}

// Run schedules checks until ctx ends; all its workers have ended when it returns.
func (p *Prober) Run(ctx context.Context) error {
	work, done := make(chan *job), make(chan outcome, p.config.Workers)
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range p.config.Workers {
		workers.Go(func() {
			for {
				select {
				case j := <-work:
					health, err := p.check(ctx, j.target)
					done <- outcome{j, health, err}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	p.schedule(ctx, work, done)
	return nil
}

func (p *Prober) schedule(ctx context.Context, work chan<- *job, done <-chan outcome) {
	jobs, queue := map[translate.Target]*job{}, &schedule{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var next *job
		var ready chan<- *job
		if queue.Len() > 0 {
			next = (*queue)[0]
			if wait := time.Until(next.due); wait <= 0 {
				ready = work
			} else {
				timer.Reset(wait)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case ready <- next:
			heap.Pop(queue)
		case o := <-done:
			p.settle(o)
			if !o.job.gone {
				heap.Push(queue, o.job)
			}
		case <-p.changed:
			for _, c := range p.noted() {
				p.change(c, jobs, queue)
			}
		}
	}
}

func (p *Prober) change(c change, jobs map[translate.Target]*job, queue *schedule) {
	known := jobs[c.target]
	switch {
	case c.gone && known != nil:
		known.gone = true
		delete(jobs, c.target)
		if known.index >= 0 {
			heap.Remove(queue, known.index)
		}
	case !c.gone && known == nil:
		j := &job{target: c.target, due: time.Now()}
		jobs[c.target] = j
		heap.Push(queue, j)
	}
}

// settle takes a check's outcome into the job and reports what changed.
func (p *Prober) settle(o outcome) {
	j, health := o.job, o.health
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
	if health != j.health && !j.gone {
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
	_, err = io.CopyN(io.Discard, response.Body, 64<<10)
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

// schedule is a heap of jobs, the next due first.
type schedule []*job

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(a, b int) bool { return s[a].due.Before(s[b].due) }
func (s schedule) Swap(a, b int) {
	s[a], s[b] = s[b], s[a]
	s[a].index, s[b].index = a, b
}

// Push implements heap.Interface.
func (s *schedule) Push(x any) {
	j := x.(*job)
	j.index = len(*s)
	*s = append(*s, j)
}

// Pop implements heap.Interface.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	j := (*s)[last]
	*s = (*s)[:last]
	j.index = -1
	return j
}
