// Package probe finds out which nodes can take traffic. One check serves all Services of a node; what it finds counts for
// UDP as well as for TCP.
package probe

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
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
	// AtOnce is how many checks there may be at the same time in each lane.
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
	return &Prober{config: config, report: report, changed: make(chan struct{}, 1),
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

// job is one target with its schedule.
type job struct {
	target   translate.Target
	due      time.Time
	failures int
	health   translate.Health
	lane     *lane
	index    int // in the lane's queue; -1 while it is checked
	gone     bool
}

type outcome struct {
	job    *job
	health translate.Health
	err    error
	took   time.Duration
}

// lane is a queue of targets of which so many may be checked at the same time.
type lane struct {
	queue schedule
	busy  int
}

// lanes are two, so that nobody can keep others waiting by many targets that answer late or never: prompt is for those that have answered
// at once when they were asked last, or are missed for the first time; doubtful is for all others, the new ones included.
type lanes struct{ prompt, doubtful lane }

// after is where a target waits for its next check, timeout being how long one may take.
func (l *lanes) after(o outcome, timeout time.Duration) *lane {
	prompt := o.err == nil && o.took < timeout/2
	missed := o.err != nil && o.job.health.State != model.Unhealthy && o.job.lane == &l.prompt
	if prompt || missed {
		return &l.prompt
	}
	return &l.doubtful
}

// begin checks what is due, as far as may be at the same time, and tells how long until something else is due. It is for ever where
// that is not for the clock to say.
func (l *lane) begin(atOnce int, check func(*job)) time.Duration {
	for l.queue.Len() > 0 && l.busy < atOnce {
		if wait := time.Until(l.queue[0].due); wait > 0 {
			return wait
		}
		l.busy++
		check(heap.Pop(&l.queue).(*job))
	}
	return math.MaxInt64
}

// Run schedules checks until ctx ends; all have ended when it returns.
func (p *Prober) Run(ctx context.Context) error {
	var checks sync.WaitGroup
	defer checks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan outcome, 2*p.config.AtOnce) // as many as there may be: none waits when nobody listens any more
	p.schedule(ctx, done, func(j *job) {
		target := j.target
		checks.Go(func() {
			began := time.Now()
			health, err := p.check(ctx, target)
			done <- outcome{j, health, err, time.Since(began)}
		})
	})
	return nil
}

func (p *Prober) schedule(ctx context.Context, done <-chan outcome, check func(*job)) {
	jobs, in := map[translate.Target]*job{}, &lanes{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(min(in.prompt.begin(p.config.AtOnce, check), in.doubtful.begin(p.config.AtOnce, check)))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case o := <-done:
			o.job.lane.busy--
			p.settle(o)
			if !o.job.gone {
				o.job.lane = in.after(o, p.config.Timeout)
				heap.Push(&o.job.lane.queue, o.job)
			}
		case <-p.changed:
			for _, c := range p.noted() {
				p.change(c, jobs, &in.doubtful)
			}
		}
	}
}

func (p *Prober) change(c change, jobs map[translate.Target]*job, fresh *lane) {
	known := jobs[c.target]
	switch {
	case c.gone && known != nil:
		known.gone = true
		delete(jobs, c.target)
		if known.index >= 0 {
			heap.Remove(&known.lane.queue, known.index)
		}
	case !c.gone && known == nil:
		j := &job{target: c.target, due: time.Now(), lane: fresh}
		jobs[c.target] = j
		heap.Push(&fresh.queue, j)
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
