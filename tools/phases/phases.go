// Package phases runs the targets of make test one after the other, also after one has failed, and sums up: how long each took, what passed, and for
// each failed test the command that runs it alone.
package phases

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// Phase is a target of make with its variables, such as install-test BACKEND=nftables.
type Phase []string

// Name is the target.
func (p Phase) Name() string { return p[0] }

// Parse reads groups of phases. Those of a group are joined by + and run side by side.
func Parse(args []string) (groups [][]Phase, err error) {
	for _, arg := range args {
		var group []Phase
		for text := range strings.SplitSeq(arg, "+") {
			phase := Phase(strings.Fields(text))
			if len(phase) == 0 {
				return nil, fmt.Errorf("%q: write targets of make, joined by + where they run side by side", arg)
			}
			group = append(group, phase)
		}
		groups = append(groups, group)
	}
	return groups, nil
}

// Result is what became of a phase.
type Result struct {
	Phase Phase
	// Err is why it failed; nil if it passed.
	Err  error
	Took time.Duration
	// Busy is the share of the machine's processors that were used meanwhile, by whatever program; 0 if it is not known.
	Busy float64
	Counts
}

// Runner runs phases.
type Runner struct {
	// Command returns the program of a phase.
	Command func(context.Context, Phase) *exec.Cmd
	// Out gets what phases print. Lines of phases that run side by side begin with their names.
	Out io.Writer

	mu sync.Mutex // guards Out
}

// Run runs all groups, and returns the results in the order of the phases. If the context ends, it ends the phases that run and begins no others.
func (r *Runner) Run(ctx context.Context, groups [][]Phase) (results []Result) {
	for _, group := range groups {
		if ctx.Err() != nil {
			return results
		}
		of := make([]Result, len(group))
		var running sync.WaitGroup
		for i, phase := range group {
			prefix := ""
			if len(group) > 1 {
				prefix = phase.Name() + ": "
			}
			running.Go(func() { of[i] = r.run(ctx, phase, prefix) })
		}
		running.Wait()
		results = append(results, of...)
	}
	return results
}

func (r *Runner) run(ctx context.Context, phase Phase, prefix string) Result {
	began, before := time.Now(), readProcessors()
	result := Result{Phase: phase}
	r.print("\n== %s\n", strings.Join(phase, " "))
	pipe, output := io.Pipe()
	cmd := r.Command(ctx, phase)
	cmd.Stdout, cmd.Stderr = output, output
	// make hands the signal on to what it runs, which removes what it has made.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	go func() { output.CloseWithError(cmd.Run()) }()
	reader := counter{phase: phase}
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			reader.read(strings.TrimSuffix(line, "\n"))
			r.print("%s%s\n", prefix, strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			if err != io.EOF {
				result.Err = err
			}
			break
		}
	}
	result.Took, result.Busy, result.Counts = time.Since(began), readProcessors().busySince(before), reader.end()
	return result
}

func (r *Runner) print(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.Out, format, args...)
}

// Sum prints the results, and reports whether all have passed.
func Sum(out io.Writer, results []Result) (passed bool) {
	passed = true
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nPHASE\tRESULT\tTIME\tPROCESSORS\tPASSED")
	var total time.Duration
	for _, r := range results {
		outcome := "passed"
		if r.Err != nil {
			outcome, passed = "FAILED", false
		}
		total += r.Took
		fmt.Fprintf(table, "%s\t%s\t%s\t%.0f %%\t%s\n", strings.Join(r.Phase, " "), outcome, r.Took.Round(time.Second), 100*r.Busy, r.Passed())
	}
	fmt.Fprintf(table, "\t\t%s\n", total.Round(time.Second))
	table.Flush()
	for _, r := range results {
		if r.Err == nil {
			continue
		}
		fmt.Fprintf(out, "\n%s failed: %v. To run it alone: make %s\n", r.Phase.Name(), r.Err, strings.Join(r.Phase, " "))
		for _, f := range r.Failures {
			fmt.Fprintf(out, "  %s: %s\n", f.What, f.Command)
		}
	}
	return passed
}
