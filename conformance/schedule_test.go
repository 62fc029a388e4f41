package conformance

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/conformance/netlab"
)

// scheduled runs cases that need no packets with a dataplane that moves none.
func scheduled(t *testing.T, ctx context.Context, o Options, chosen []cases.Case) (names []string, err error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	fake := InProcess(func() dataplane.Dataplane { return &dataplane.Fake{} })
	r := runner{backends: cases.Backends{Tested: fake}, options: o}
	err = r.runAll(ctx, chosen, func(run Run) { names = append(names, run.Case) })
	return names, err
}

func TestCasesRunSideBySideAndAreReportedInTheirOrder(t *testing.T) {
	first, second := make(chan struct{}), make(chan struct{})
	var others atomic.Int32
	alone := func(c *cases.C) {
		c.Zero(others.Load(), "another case runs")
	}
	chosen := []cases.Case{
		{Name: "slow", OneFamily: true, Run: func(*cases.C) {
			others.Add(1)
			close(first)
			<-second // which only ends if both run at the same time
			others.Add(-1)
		}},
		{Name: "quick", OneFamily: true, Run: func(*cases.C) {
			others.Add(1)
			<-first
			others.Add(-1)
			close(second)
		}},
		{Name: "alone", OneFamily: true, Exclusive: true, Run: alone},
		{Name: "waits", OneFamily: true, Waits: true, Run: func(*cases.C) { <-first }},
		{Name: "last", OneFamily: true, Run: func(*cases.C) { others.Add(1); others.Add(-1) }},
	}
	names, err := scheduled(t, t.Context(), Options{Parallel: 2, Patience: lab.Patience(1)}, chosen)
	require.NoError(t, err)
	require.Equal(t, []string{"slow", "quick", "alone", "waits", "last"}, names)
}

func TestAnInterruptedSuiteKeepsTheRunsThatWereDone(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	var ran atomic.Bool
	chosen := []cases.Case{
		{Name: "done", OneFamily: true, Run: func(*cases.C) {}},
		{Name: "interrupted", OneFamily: true, Run: func(c *cases.C) {
			interrupt()
			time.Sleep(100 * time.Millisecond)
			c.Fail("after the interrupt nothing works")
		}},
		{Name: "next", OneFamily: true, Run: func(*cases.C) { ran.Store(true) }},
	}
	names, err := scheduled(t, ctx, Options{}, chosen)
	require.ErrorIs(t, err, errInterrupted)
	require.ErrorContains(t, err, "interrupted during case interrupted")
	require.Equal(t, []string{"done"}, names)
	require.False(t, ran.Load())
}

// neverStarts is a dataplane whose start hangs.
type neverStarts struct{}

// Start implements cases.Backend.
func (neverStarts) Start(ctx context.Context, _ *netlab.Namespace, _ io.Writer) (cases.Process, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestABackendThatIsNotDescribedIsNotTested(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	report, err := RunCases(ctx, neverStarts{}, Options{})
	require.ErrorIs(t, err, errInterrupted)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Empty(t, report.Backend.Name)
	require.Empty(t, report.Runs)
}
