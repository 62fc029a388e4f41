// Package phases runs the targets of make test one after another, also after a failure. It prints how long each target took, what passed, and the command that runs
// each failed test alone.
package phases

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// Phase is a make target with its variables, such as install-test BACKEND=nftables.
type Phase []string

// Name returns the target.
func (p Phase) Name() string { return p[0] }

// Parse parses phases. Each argument is a target and its variables, separated by blanks.
func Parse(args []string) (phases []Phase, err error) {
	for _, arg := range args {
		phase := Phase(strings.Fields(arg))
		if len(phase) == 0 {
			return nil, fmt.Errorf("%q: give a make target", arg)
		}
		phases = append(phases, phase)
	}
	return phases, nil
}

// Result is the result of a phase.
type Result struct {
	Phase Phase
	// Err is the reason of a failure; nil if the phase passed.
	Err  error
	Took time.Duration
	// Busy is the share of the processors' time that all programs of the machine used during the phase; 0 if it is not known.
	Busy float64
	Counts
}

// Runner runs phases.
type Runner struct {
	// Command returns the program of a phase.
	Command func(context.Context, Phase) *exec.Cmd
	// Out gets the output of phases.
	Out io.Writer
}

// Run runs all phases, and returns their results. If the context ends, it stops the running phase and starts no others.
func (r Runner) Run(ctx context.Context, phases []Phase) (results []Result) {
	for _, phase := range phases {
		if ctx.Err() != nil {
			break
		}
		results = append(results, r.run(ctx, phase))
	}
	return results
}

func (r Runner) run(ctx context.Context, phase Phase) Result {
	began, before := time.Now(), readProcessors()
	result := Result{Phase: phase}
	fmt.Fprintf(r.Out, "\n== %s\n", strings.Join(phase, " "))
	pipe, output := io.Pipe()
	cmd := r.Command(ctx, phase)
	cmd.Stdout, cmd.Stderr = output, output
	// make forwards the signal to its programs, which clean up.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	go func() { output.CloseWithError(cmd.Run()) }()
	counter := counter{phase: phase}
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			counter.read(strings.TrimSuffix(line, "\n"))
			fmt.Fprintln(r.Out, strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			if err != io.EOF {
				result.Err = err
			}
			break
		}
	}
	result.Took, result.Busy, result.Counts = time.Since(began), readProcessors().busySince(before), counter.end()
	return result
}

// Sum prints the results, and reports whether all phases passed.
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
