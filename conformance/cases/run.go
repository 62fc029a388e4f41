package cases

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/conformance/netlab"
)

// Setting is what a run needs besides its case.
type Setting struct {
	Backends Backends
	V4       bool
	Patience lab.Patience
	// Activity, if set, gets what the run does.
	Activity *Activity
}

// Outcome is the result of a run.
type Outcome struct {
	// Failures is empty if the run passed.
	Failures []Failure
	// Interrupted: the context ended before the run did. Then nothing else counts.
	Interrupted bool
	// Hung is the call that the backend did not answer in time, and how far the case was. Deaths are the processes of backends that ended by
	// themselves.
	Hung   string
	Deaths []Death
	// Log has the lines that backend and case wrote, Trace the last packets at the gateways before the first failure. Both are set if
	// the run failed.
	Log, Trace string
	// Measured are measurements for the report, as sentences.
	Measured []string
	Duration time.Duration
}

// Death is the end of a process of a backend that nobody ended.
type Death struct {
	// Host is the gateway. Status is how the process ended, and empty if that is not known.
	Host, Status string
	// Output is what the process wrote.
	Output string
}

// limit ends a run that hangs. Cases that take longer on a busy machine have a limit of their own.
const limit = 3 * time.Minute

// Run runs a case once. It needs root, and removes everything that it made.
func Run(ctx context.Context, c Case, s Setting) Outcome {
	return run(ctx, s, cmp.Or(c.Limit, limit), func(run *C) {
		run.setUp(c)
		c.Run(run)
	})
}

// Describe starts the tested backend on a host of its own, and returns its description.
func Describe(ctx context.Context, s Setting) (description dataplane.Description, err error) {
	outcome := run(ctx, s, limit, func(run *C) {
		l := netlab.New(lab.Prefix)
		host, err := l.Namespace("host")
		run.useLab(l.EndProcesses, l.Close) // not before: what an interrupt removes has to be there
		run.NoError(err)
		p, err := load(run, s.Backends.Tested, host)
		run.NoError(err)
		run.Cleanup(p.Stop)
		description, err = p.Describe(run.ctx)
		run.NoError(err)
	})
	if ctx.Err() != nil {
		return description, ctx.Err()
	}
	if len(outcome.Failures) == 0 {
		return description, nil
	}
	first := outcome.Failures[0]
	text := fmt.Sprintf("expected %s, seen: %s", first.Expected, first.Seen)
	for _, d := range outcome.Deaths {
		text += "\n" + d.String()
	}
	return description, errors.New(text)
}

// String says how the process ended and what it wrote.
func (d Death) String() string {
	text := "the backend at " + d.Host
	if d.Status != "" {
		text += " ended by itself (" + d.Status + ")"
	}
	if d.Output == "" {
		return text + " wrote nothing"
	}
	text += " wrote:"
	for line := range strings.Lines(d.Output) {
		text += "\n  " + strings.TrimRight(line, "\n")
	}
	return text
}

// run runs the body in a goroutine of its own, which FailNow ends, as in package testing. Cleanups always run.
func run(ctx context.Context, s Setting, within time.Duration, body func(*C)) Outcome {
	begin := time.Now()
	within = s.Patience.For(within)
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	run := newC(limited, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer run.cleanUp()
		defer run.recoverPanic()
		body(run)
	}()
	select {
	case <-done:
	case <-limited.Done():
		if ctx.Err() == nil {
			doing, since := run.activity.Doing()
			run.fail(Failure{Expected: fmt.Sprintf("the case is done within %s", within), Seen: fmt.Sprintf("for %s: %s", time.Since(since).Round(time.Second), doing)})
		}
		run.giveUp(done)
	}
	outcome := run.outcome(time.Since(begin))
	outcome.Interrupted = ctx.Err() != nil
	return outcome
}

func newC(ctx context.Context, s Setting) *C {
	c := &C{V4: s.V4, Patience: s.Patience, ctx: ctx, backends: s.Backends, activity: cmp.Or(s.Activity, &Activity{})}
	c.Assertions = require.New(c)
	return c
}

func (c *C) outcome(took time.Duration) Outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := Outcome{Failures: c.failures, Hung: c.hung, Deaths: c.deaths, Measured: c.measured, Duration: took}
	if len(o.Failures) > 0 {
		o.Log, o.Trace = c.log.String(), c.trace.String()
	}
	return o
}

// giveUpWait is how long a run that is given up may take to clean up. An interrupted suite is to end within five seconds.
const giveUpWait = 4 * time.Second

// giveUp cleans up after a run whose goroutine does not end in time. The goroutine ends at the next thing that it does, because nothing works
// any more. Only a goroutine that is building the lab has to end before, because it removes the lab.
func (c *C) giveUp(done <-chan struct{}) {
	c.mu.Lock()
	c.givenUp = true
	built := c.killAll != nil
	c.mu.Unlock()
	cleaned := make(chan struct{})
	go func() {
		defer close(cleaned)
		_ = c.endProcesses() // Close of the lab says if it did not work
		c.cleanUp()
		c.starting.Wait() // a start cannot be cancelled, and makes files
		if !built {
			<-done
		}
	}()
	select {
	case <-cleaned:
	case <-time.After(c.Patience.For(giveUpWait)):
	}
}

// beginStart notes that a process starts, unless the run has ended. The caller calls starting.Done.
func (c *C) beginStart() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.givenUp || c.ctx.Err() != nil {
		return false
	}
	c.starting.Add(1)
	return true
}

// useLab registers how the hosts' processes and the hosts are removed.
func (c *C) useLab(endProcesses, remove func() error) {
	c.mu.Lock()
	c.killAll = endProcesses
	c.mu.Unlock()
	c.Cleanup(func() {
		if err := remove(); err != nil {
			c.Errorf("remove the lab: %v", err)
		}
	})
}

// endProcesses kills all processes on the hosts.
func (c *C) endProcesses() error {
	c.mu.Lock()
	killAll := c.killAll
	c.mu.Unlock()
	if killAll == nil {
		return nil
	}
	return killAll()
}

func (c *C) recoverPanic() {
	if r := recover(); r != nil {
		c.report(Failure{Expected: "no panic of the case", Seen: oneLine(fmt.Sprint(r)), Details: sourcePath.ReplaceAllString(fmt.Sprintf("panic: %v\n%s", r, debug.Stack()), "$1")})
	}
}

// Errorf records a failure, which becomes part of the report.
func (c *C) Errorf(format string, args ...any) {
	c.report(failureFrom(fmt.Sprintf(format, args...)))
}

// report records a failure, unless it only follows from one that is recorded, or from the end of the run.
func (c *C) report(f Failure) {
	c.mu.Lock()
	dead := c.hung != "" || len(c.deaths) > 0
	c.mu.Unlock()
	if c.ctx.Err() != nil || dead && (strings.Contains(f.Details, errHang.Error()) || strings.Contains(f.Details, plugin.ErrUnreachable.Error())) {
		return
	}
	f.During, _ = c.activity.Doing()
	c.fail(f)
}

// fail records a failure. The packet trace ends at the first one.
func (c *C) fail(f Failure) {
	c.mu.Lock()
	c.failures = append(c.failures, f)
	first, captures := len(c.failures) == 1, c.captures
	c.mu.Unlock()
	if !first {
		return
	}
	var trace strings.Builder
	for _, t := range captures {
		t.write(&trace)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trace.WriteString(trace.String())
}

// hang records that the backend did not answer a call.
func (c *C) hang(what string, f Failure) {
	c.mu.Lock()
	c.hung = cmp.Or(c.hung, what)
	c.mu.Unlock()
	c.fail(f)
}

// unreachable records that a process of the backend has ended by itself.
func (c *C) unreachable(f Failure, d Death) {
	c.mu.Lock()
	c.deaths = append(c.deaths, d)
	c.mu.Unlock()
	c.fail(f)
}

// Cleanup registers f to run at the end, in reverse order of registration.
func (c *C) Cleanup(f func()) {
	c.mu.Lock()
	if !c.givenUp {
		defer c.mu.Unlock()
		c.cleanups = append(c.cleanups, f)
		return
	}
	c.mu.Unlock()
	f() // the others have run
}

func (c *C) cleanUp() {
	c.cleaning.Lock()
	defer c.cleaning.Unlock()
	for {
		c.mu.Lock()
		n := len(c.cleanups)
		if n == 0 {
			c.mu.Unlock()
			return
		}
		f := c.cleanups[n-1]
		c.cleanups = c.cleanups[:n-1]
		c.mu.Unlock()
		f()
	}
}

// doing notes what the case does, for progress and failures. A case that is given up ends here.
func (c *C) doing(format string, args ...any) {
	c.mu.Lock()
	over := c.givenUp
	c.mu.Unlock()
	if over {
		c.FailNow()
	}
	c.activity.set(fmt.Sprintf(format, args...))
}

// ExpectChanges says that n changes follow, so that progress and failures say how far the case is.
func (c *C) ExpectChanges(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes, c.allChanges = 0, n
}

// nextChange counts a change and describes it.
func (c *C) nextChange(records int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	if c.allChanges > 0 {
		return fmt.Sprintf(", change %s of %s", thousands(c.changes), thousands(c.allChanges))
	}
	return fmt.Sprintf(", change %s of the case, with %s", thousands(c.changes), count(records, "record"))
}

// progress says which changes have been applied.
func (c *C) progress() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.allChanges > 0 {
		return fmt.Sprintf(", after change %s of %s", thousands(c.changes), thousands(c.allChanges))
	}
	return ", after " + count(c.changes, "change")
}

// traced is the capture of a gateway, which is shown if the run fails.
type traced struct {
	host    string
	capture *lab.Capture
}

// traceLength is how many packets of each gateway a trace shows.
const traceLength = 60

// write ends the capture and writes its last packets.
func (t traced) write(out *strings.Builder) {
	packets := t.capture.Close()
	fmt.Fprintf(out, "the last packets at %s before the failure:\n", t.host)
	for _, p := range packets[max(0, len(packets)-traceLength):] {
		fmt.Fprintln(out, p)
	}
}
