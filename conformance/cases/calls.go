package cases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// callLimits are the deadlines of calls. They are those of a gateway, or shorter where the few records of a case cannot need so long.
type callLimits struct {
	start, describe, preflight, configure, applied, render, stats, close, purge, watch time.Duration
	// apply is for an empty change. Each record, endpoint and source range adds applyPerRecord.
	apply, applyPerRecord time.Duration
}

func limitsOf(p lab.Patience) callLimits {
	half, whole := p.For(30*time.Second), p.For(time.Minute)
	return callLimits{start: whole, describe: p.For(10 * time.Second), preflight: half, configure: half, applied: half, render: half, stats: half,
		close: half, purge: whole, watch: p.For(10 * time.Second), apply: whole, applyPerRecord: p.For(10 * time.Millisecond)}
}

// forChange returns the deadline of an Apply.
func (l callLimits) forChange(d model.Delta) time.Duration {
	n := d.Len()
	for _, p := range d.UpsertPools {
		n += len(p.Endpoints)
	}
	for _, f := range d.UpsertFrontends {
		n += len(f.SourceRanges)
	}
	return l.apply + time.Duration(n)*l.applyPerRecord
}

// errHang says that a backend did not answer a call in time.
var errHang = errors.New("the backend hangs")

// process is a backend's process whose calls have deadlines, and whose end is noticed. After a call that hangs it is killed.
type process struct {
	Process
	c      *C
	host   string
	limits callLimits
	output *output

	mu sync.Mutex // guards what follows
	// ending: the case or the suite has ended the process or its work, or its end is noticed. closing: Close has been called.
	ending, closing bool
	// calls is the number of calls that have no answer, without Watch.
	calls int
}

// load starts a backend within the deadline of a start.
func load(c *C, backend Backend, on *netlab.Namespace) (*process, error) {
	p := &process{c: c, host: shortName(on), limits: limitsOf(c.Patience), output: &output{log: c}}
	if !c.beginStart() {
		return nil, context.Cause(c.ctx)
	}
	var err error
	p.Process, err = call(c.ctx, p, "its start", "", p.limits.start, func(ctx context.Context) (Process, error) {
		defer c.starting.Done()
		started, err := backend.Start(ctx, on, p.output)
		if err == nil && ctx.Err() != nil { // nobody waits for it any more
			started.Stop()
			return nil, ctx.Err()
		}
		return started, err
	})
	if err != nil && !errors.Is(err, errHang) {
		c.unreachable(Failure{Expected: "the backend starts at " + p.host, Seen: oneLine(err.Error()), Details: err.Error()}, Death{p.host, "", p.output.String()})
		return nil, fmt.Errorf("%w: %w", plugin.ErrUnreachable, err)
	}
	return p, err
}

// shortName returns the name of a host in its lab.
func shortName(host *netlab.Namespace) string {
	return host.Name[strings.LastIndexByte(host.Name, '-')+1:]
}

// call calls the backend. It returns when the backend has answered, or at the limit, although the backend may ignore the context. The detail says how far
// the case is.
func call[T any](ctx context.Context, p *process, name, detail string, limit time.Duration, do func(context.Context) (T, error)) (T, error) {
	what := name + " at " + p.host + detail
	p.c.activity.set(what)
	p.count(1)
	defer p.count(-1)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type answer struct {
		result T
		err    error
	}
	answered, late := make(chan answer, 1), time.NewTimer(limit+p.c.Patience.For(graceOfCall))
	defer late.Stop()
	go func() {
		result, err := do(limited)
		answered <- answer{result, err}
	}()
	select {
	case a := <-answered:
		if a.err == nil || ctx.Err() != nil || limited.Err() == nil {
			p.c.activity.follow(what)
			return a.result, p.explain(what, a.err)
		}
	case <-late.C:
	}
	return *new(T), p.hang(what, limit)
}

// graceOfCall is how long after its deadline a call may return. Then the backend ignores the deadline.
const graceOfCall = time.Second

// hang records that a call hangs, and kills the process, so that nothing else waits for it.
func (p *process) hang(what string, limit time.Duration) error {
	if err := p.c.ctx.Err(); err != nil { // the run has ended
		return err
	}
	p.c.hang(what, Failure{Expected: fmt.Sprintf("an answer to %s within %s", what, limit), Seen: "no answer: the backend hangs, and is killed"})
	if p.Process != nil {
		_ = p.Kill() // it may have ended by itself meanwhile
	} else {
		_ = p.c.endProcesses() // a start cannot be cancelled
	}
	return fmt.Errorf("%w: no answer to %s within %s", errHang, what, limit)
}

// explain looks for the reason why a backend could not be reached, once.
func (p *process) explain(what string, err error) error {
	if !errors.Is(err, plugin.ErrUnreachable) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending || p.c.ctx.Err() != nil {
		return err
	}
	status := p.awaitExit()
	seen := "the backend's process has ended by itself: " + status
	if status == "" {
		seen = "the backend's process runs, but has ended the connection"
	}
	if p.c.ctx.Err() == nil {
		p.ending = true
		p.c.unreachable(Failure{Expected: "an answer to " + what, Seen: seen, Details: err.Error()}, Death{p.host, status, p.output.String()})
	}
	return err
}

// awaitExit waits for the end of a process that ended the connection.
func (p *process) awaitExit() string {
	for begin := time.Now(); time.Since(begin) < p.c.Patience.For(2*time.Second); time.Sleep(10 * time.Millisecond) {
		if status := p.Process.ExitStatus(); status != "" {
			return status
		}
	}
	return ""
}

// end notes that the process is to end.
func (p *process) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending = true
}

func (p *process) count(calls int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls += calls
}

// isQuiet reports whether an end of the process is unexpected, and no call will report it.
func (p *process) isQuiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.ending && !p.closing && p.calls == 0
}

// Kill ends the process like a crash.
func (p *process) Kill() error {
	p.end()
	return p.Process.Kill()
}

// Stop ends the process in good order.
func (p *process) Stop() {
	p.end()
	p.c.activity.set("the end of the backend at " + p.host)
	p.Process.Stop()
}

// Describe calls the backend.
func (p *process) Describe(ctx context.Context) (dataplane.Description, error) {
	return call(ctx, p, "Describe", "", p.limits.describe, p.Process.Describe)
}

// Preflight calls the backend.
func (p *process) Preflight(ctx context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	return call(ctx, p, "Preflight", "", p.limits.preflight, func(ctx context.Context) ([]dataplane.Check, error) { return p.Process.Preflight(ctx, config) })
}

// Configure calls the backend.
func (p *process) Configure(ctx context.Context, config dataplane.Config) error {
	_, err := call(ctx, p, "Configure", "", p.limits.configure, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, p.Process.Configure(ctx, config)
	})
	return err
}

// Applied calls the backend.
func (p *process) Applied(ctx context.Context) (dataplane.Applied, error) {
	return call(ctx, p, "Applied", p.c.progress(), p.limits.applied, p.Process.Applied)
}

// Apply calls the backend, and counts the changes.
func (p *process) Apply(ctx context.Context, change dataplane.Change) (dataplane.Result, error) {
	return call(ctx, p, "Apply", p.c.nextChange(change.Len()), p.limits.forChange(change.Delta), func(ctx context.Context) (dataplane.Result, error) { return p.Process.Apply(ctx, change) })
}

// Render calls the backend.
func (p *process) Render(ctx context.Context, snapshot model.Snapshot) (string, error) {
	return call(ctx, p, "Render", "", p.limits.render, func(ctx context.Context) (string, error) { return p.Process.Render(ctx, snapshot) })
}

// Stats calls the backend.
func (p *process) Stats(ctx context.Context) (dataplane.Stats, error) {
	return call(ctx, p, "Stats", "", p.limits.stats, p.Process.Stats)
}

// Watch watches until ctx ends. The backend has to return then.
func (p *process) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	returned := make(chan error, 1)
	go func() { returned <- p.Process.Watch(ctx, report) }()
	select {
	case err := <-returned:
		if p.isQuiet() {
			return p.explain("Watch at "+p.host, err)
		}
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-returned:
		return err
	case <-time.After(p.limits.watch):
		return p.hang("the end of Watch at "+p.host, p.limits.watch)
	}
}

// Close calls the backend. Its process may end after it.
func (p *process) Close(ctx context.Context, purge bool) error {
	name, limit := "Close", p.limits.close
	if purge {
		name, limit = "Close with a purge", p.limits.purge
	}
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	_, err := call(ctx, p, name, "", limit, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.Process.Close(ctx, purge) })
	if err == nil {
		p.end()
	}
	return err
}

// output has the last part of what a process wrote. The log of the run gets all of it.
type output struct {
	log io.Writer

	mu   sync.Mutex // guards what follows
	text []byte
	cut  int
}

// keptOutput bounds what is kept of a process that writes without end.
const keptOutput = 8 << 20

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	o.text = append(o.text, b...)
	if more := len(o.text) - keptOutput; more > keptOutput {
		o.text, o.cut = append([]byte(nil), o.text[more:]...), o.cut+more
	}
	o.mu.Unlock()
	return o.log.Write(b)
}

// String returns what was written, and how much of it is left out.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cut > 0 {
		return fmt.Sprintf("(%s more before)\n%s", count(o.cut, "byte"), o.text)
	}
	return string(o.text)
}
