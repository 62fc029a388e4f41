package cases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// bad is a backend's process that behaves as its functions say.
type bad struct {
	dataplane.Fake
	call   func(context.Context) error
	watch  func(context.Context) error
	killed atomic.Bool
	status atomic.Value
}

func (b *bad) Kill() error {
	b.killed.Store(true)
	return nil
}

func (b *bad) Stop() {}

func (b *bad) ExitStatus() string {
	status, _ := b.status.Load().(string)
	return status
}

func (b *bad) Describe(ctx context.Context) (dataplane.Description, error) {
	return dataplane.Description{}, b.call(ctx)
}

func (b *bad) Preflight(ctx context.Context, _ dataplane.Config) ([]dataplane.Check, error) {
	return nil, b.call(ctx)
}

func (b *bad) Configure(ctx context.Context, _ dataplane.Config) error { return b.call(ctx) }

func (b *bad) Applied(ctx context.Context) (dataplane.Applied, error) {
	return dataplane.Applied{}, b.call(ctx)
}

func (b *bad) Apply(ctx context.Context, _ dataplane.Change) (dataplane.Result, error) {
	return dataplane.Result{}, b.call(ctx)
}

func (b *bad) Render(ctx context.Context, _ model.Snapshot) (string, error) { return "", b.call(ctx) }

func (b *bad) Stats(ctx context.Context) (dataplane.Stats, error) {
	return dataplane.Stats{}, b.call(ctx)
}

func (b *bad) Watch(ctx context.Context, _ func(dataplane.Fault)) error { return b.watch(ctx) }

func (b *bad) Close(ctx context.Context, _ bool) error { return b.call(ctx) }

// Start implements Backend.
func (b *bad) Start(ctx context.Context, _ *netlab.Namespace, log io.Writer) (Process, error) {
	fmt.Fprintln(log, "it begins")
	return b, b.call(ctx)
}

// hangs ignores its context, as a backend in the test's own process may.
func hangs(context.Context) error {
	time.Sleep(10 * time.Second)
	return nil
}

// shortly are deadlines for tests.
func shortly() callLimits {
	d := 20 * time.Millisecond
	return callLimits{start: d, describe: d, preflight: d, configure: d, applied: d, render: d, stats: d, close: d, purge: 2 * d, watch: d, apply: d}
}

func processOf(c *C, b *bad) *process {
	return &process{Process: b, c: c, host: "g0", limits: shortly(), output: &output{log: c}}
}

func TestACallThatHangsIsNamedAndItsProcessIsKilled(t *testing.T) {
	ctx := context.Background()
	for name, call := range map[string]func(*process) error{
		"Describe at g0":  func(p *process) error { _, err := p.Describe(ctx); return err },
		"Preflight at g0": func(p *process) error { _, err := p.Preflight(ctx, dataplane.Config{}); return err },
		"Configure at g0": func(p *process) error { return p.Configure(ctx, dataplane.Config{}) },
		"Applied at g0, after change 411 of 1,000": func(p *process) error {
			_, err := p.Applied(ctx)
			return err
		},
		"Apply at g0, change 412 of 1,000": func(p *process) error { _, err := p.Apply(ctx, dataplane.Change{}); return err },
		"Render at g0":                     func(p *process) error { _, err := p.Render(ctx, model.Snapshot{}); return err },
		"Stats at g0":                      func(p *process) error { _, err := p.Stats(ctx); return err },
		"Close at g0":                      func(p *process) error { return p.Close(ctx, false) },
		"Close with a purge at g0":         func(p *process) error { return p.Close(ctx, true) },
		"the end of Watch at g0": func(p *process) error {
			ended, end := context.WithCancel(ctx)
			end()
			return p.Watch(ended, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &bad{call: hangs, watch: hangs}
			o := run(ctx, quick, limit, func(c *C) {
				c.ExpectChanges(1000)
				c.changes = 411
				err := call(processOf(c, b))
				c.ErrorIs(err, errHang)
				c.NoError(err) // follows from the hang, and is not reported again
			})
			require.True(t, b.killed.Load())
			require.Equal(t, name, o.Hung)
			require.Len(t, o.Failures, 1)
			require.Equal(t, "no answer: the backend hangs, and is killed", o.Failures[0].Seen)
			require.Contains(t, o.Failures[0].Expected, "an answer to "+name+" within ")
		})
	}
}

func TestACallThatHonoursItsDeadlineHangsAsWell(t *testing.T) {
	b := &bad{call: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	o := run(t.Context(), quick, limit, func(c *C) {
		_, err := processOf(c, b).Stats(c.ctx)
		c.ErrorIs(err, errHang)
	})
	require.Equal(t, "Stats at g0", o.Hung)
}

// Cases interrupt calls on purpose.
func TestACallWhoseCallerDoesNotWaitDoesNotHang(t *testing.T) {
	b := &bad{call: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	o := run(t.Context(), quick, limit, func(c *C) {
		cut, cancel := context.WithTimeout(c.ctx, time.Millisecond)
		defer cancel()
		_, err := processOf(c, b).Apply(cut, dataplane.Change{})
		c.ErrorIs(err, context.DeadlineExceeded)
	})
	require.Empty(t, o.Hung)
	require.Empty(t, o.Failures)
	require.False(t, b.killed.Load())
}

func TestALongChangeMayTakeLonger(t *testing.T) {
	l := callLimits{apply: time.Minute, applyPerRecord: time.Second}
	require.Equal(t, time.Minute, l.forChange(model.Delta{}))
	pool := model.Pool{ID: "t/a", Endpoints: make([]model.Endpoint, 5)}
	require.Equal(t, time.Minute+7*time.Second, l.forChange(model.Delta{UpsertPools: []model.Pool{pool}, DeletePools: []model.PoolID{"t/b"}}))
}

func TestAProcessThatEndsByItselfIsReportedOnceWithWhatItWrote(t *testing.T) {
	b := &bad{call: func(context.Context) error { return fmt.Errorf("%w: EOF", plugin.ErrUnreachable) }}
	b.watch = b.call
	b.status.Store("exit status 3")
	o := run(t.Context(), quick, limit, func(c *C) {
		p := processOf(c, b)
		fmt.Fprintln(p.output, "first line")
		fmt.Fprint(p.output, "last words")
		_ = p.Watch(c.ctx, nil)
		_, err := p.Apply(c.ctx, dataplane.Change{})
		c.NoError(err)
	})
	require.Equal(t, []Death{{Host: "g0", Status: "exit status 3", Output: "first line\nlast words"}}, o.Deaths)
	require.Len(t, o.Failures, 1)
	require.Equal(t, "the backend's process has ended by itself: exit status 3", o.Failures[0].Seen)
	require.Equal(t, "the backend at g0 ended by itself (exit status 3) wrote:\n  first line\n  last words", o.Deaths[0].String())
	require.Contains(t, o.Log, "last words")
}

func TestAProcessThatTheCaseEndedHasNotEndedByItself(t *testing.T) {
	for name, end := range map[string]func(*process){
		"killed":  func(p *process) { _ = p.Kill() },
		"stopped": func(p *process) { p.Stop() },
		"closed":  func(p *process) { p.ending = true },
	} {
		b := &bad{call: func(context.Context) error { return plugin.ErrUnreachable }}
		o := run(t.Context(), quick, limit, func(c *C) {
			p := processOf(c, b)
			end(p)
			_, err := p.Stats(c.ctx)
			c.ErrorIs(err, plugin.ErrUnreachable)
		})
		require.Empty(t, o.Deaths, name)
		require.Empty(t, o.Failures, name)
	}
}

func TestABackendThatDoesNotStartShowsWhatItWrote(t *testing.T) {
	b := &bad{call: func(context.Context) error { return errors.New("its process has ended (exit status 1): no handshake") }}
	o := run(t.Context(), quick, limit, func(c *C) {
		_, err := load(c, b, &netlab.Namespace{Name: "lab-1-g0"})
		c.NoError(err)
	})
	require.Len(t, o.Failures, 1)
	require.Equal(t, "its process has ended (exit status 1): no handshake", o.Failures[0].Seen)
	require.Equal(t, []Death{{Host: "g0", Output: "it begins\n"}}, o.Deaths)
}

func TestTheOutputOfAProcessIsBounded(t *testing.T) {
	o := &output{log: io.Discard}
	line := strings.Repeat("x", 1<<20-1) + "\n"
	for range 20 {
		fmt.Fprint(o, line)
	}
	fmt.Fprint(o, "last words")
	text := o.String()
	require.True(t, strings.HasSuffix(text, "last words"))
	require.True(t, strings.HasPrefix(text, "("), text[:40])
	require.Less(t, len(text), 2*keptOutput+100)
}

func TestACaseThatIsNotDoneInTimeEndsWithWhatItDid(t *testing.T) {
	cleaned, ended := make(chan struct{}), make(chan struct{})
	begin := time.Now()
	o := run(t.Context(), quick, 50*time.Millisecond, func(c *C) {
		defer close(ended)
		c.Cleanup(func() { close(cleaned) })
		c.doing("waiting for a flow to end")
		<-cleaned // longer than the limit: until all around it is gone
		c.Cleanup(func() {})
		c.doing("something else")
		t.Error("the case goes on")
	})
	<-ended
	require.Less(t, time.Since(begin), giveUpWait)
	require.Len(t, o.Failures, 1)
	require.Equal(t, "the case is done within 50ms", o.Failures[0].Expected)
	require.Contains(t, o.Failures[0].Seen, "waiting for a flow to end")
}

func TestAnInterruptDoesNotWaitForACaseThatHangs(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	hang := make(chan struct{})
	defer close(hang)
	begun, cleaned := make(chan struct{}), false
	go func() {
		<-begun
		interrupt()
	}()
	begin := time.Now()
	o := run(ctx, quick, limit, func(c *C) {
		c.useLab(func() error { return nil }, func() error {
			cleaned = true
			return nil
		})
		close(begun)
		<-hang
	})
	require.Less(t, time.Since(begin), giveUpWait)
	require.True(t, cleaned)
	require.Empty(t, o.Failures, "an interrupt is no failure")
}

func TestThePanicOfACaseIsAFailureWithItsStackInTheDetails(t *testing.T) {
	o := run(t.Context(), quick, limit, func(*C) { panic("no such pool") })
	require.Len(t, o.Failures, 1)
	require.Equal(t, "no such pool", o.Failures[0].Seen)
	require.Contains(t, o.Failures[0].Details, "run_test.go:")
}

func TestCleanupsRunInReverseOrderAlsoAfterAFailure(t *testing.T) {
	var order []int
	o := run(t.Context(), quick, limit, func(c *C) {
		for i := range 3 {
			c.Cleanup(func() { order = append(order, i) })
		}
		c.FailNow()
	})
	require.Equal(t, []int{2, 1, 0}, order)
	require.Empty(t, o.Failures)
}

func TestAnActivityIsKnownWhileARunWorks(t *testing.T) {
	var a Activity
	s := quick
	s.Activity = &a
	o := run(t.Context(), s, limit, func(c *C) {
		c.doing("%s to %s", count(20, "tcp flow"), "203.0.113.1:80")
		text, since := a.Doing()
		c.Equal("20 tcp flows to 203.0.113.1:80", text)
		_, err := processOf(c, &bad{call: func(context.Context) error { return nil }}).Stats(c.ctx)
		c.NoError(err)
		text, _ = a.Doing()
		c.Equal("checks after Stats at g0", text)
		c.Less(time.Since(since), 10*time.Second)
		c.Equal(", change 1 of the case, with 1,000 records", c.nextChange(1000))
		c.ExpectChanges(1000)
		c.Equal(", change 1 of 1,000", c.nextChange(2))
		c.Equal(", after change 1 of 1,000", c.progress())
	})
	require.Empty(t, o.Failures)
}

func TestTheTraceEndsAtTheFirstFailure(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	send := func(c *C, port uint16) {
		conn, err := c.Lab.A.Dial("udp", netip.AddrPortFrom(c.Lab.GatewayAddress(true, 0), port), lab.From{})
		c.NoError(err)
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		c.NoError(err)
		time.Sleep(50 * time.Millisecond) // the packet is at the gateway
	}
	b := &bad{call: func(context.Context) error { return nil }}
	b.watch = func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	}
	s := quick
	s.Backends.Tested = b
	o := Run(t.Context(), Case{Name: "traced", Run: func(c *C) {
		c.Cleanup(func() { send(c, 3333) })
		send(c, 1111)
		c.Errorf("the first failure")
		send(c, 2222)
		c.Errorf("another failure")
	}}, s)
	require.Len(t, o.Failures, 2)
	require.Contains(t, o.Trace, "the last packets at g0 before the failure:\n")
	require.Contains(t, o.Trace, ":1111 UDP")
	require.NotContains(t, o.Trace, ":2222 ")
	require.NotContains(t, o.Trace, ":3333 ")
}
