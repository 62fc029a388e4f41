// Package phases runs the targets of make test, also after a failure: one after another, or several at once. It prints how long each target took, what passed,
// and the command that runs each failed test alone.
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

// Phase is a make target with its variables, such as install-test BACKEND=nftables.
type Phase []string

// Name returns the target.
func (p Phase) Name() string { return p[0] }

// Step is a list of phases that run at the same time.
type Step []Phase

// Parse parses steps. Each argument is a target and its variables, separated by blanks, or several of these with " + " between them.
func Parse(args []string) (steps []Step, err error) {
	for _, arg := range args {
		var step Step
		for text := range strings.SplitSeq(arg, " + ") {
			phase := Phase(strings.Fields(text))
			if len(phase) == 0 {
				return nil, fmt.Errorf("%q: give a make target", arg)
			}
			step = append(step, phase)
		}
		steps = append(steps, step)
	}
	return steps, nil
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

// Run runs all steps, and returns the results of their phases. If the context ends, it stops the running phases and starts no others.
func (r Runner) Run(ctx context.Context, steps []Step) (results []Result) {
	out := &lines{out: r.Out}
	for _, step := range steps {
		if ctx.Err() != nil {
			break
		}
		results = append(results, r.runStep(ctx, step, out)...)
	}
	return results
}

// runStep runs the phases of a step. If there are several, each line of output begins with the name of its phase.
func (r Runner) runStep(ctx context.Context, step Step, out *lines) []Result {
	results := make([]Result, len(step))
	var runs sync.WaitGroup
	for i, phase := range step {
		prefix := ""
		if len(step) > 1 {
			prefix = phase.Name() + ": "
		}
		runs.Go(func() { results[i] = r.run(ctx, phase, prefix, out) })
	}
	runs.Wait()
	return results
}

func (r Runner) run(ctx context.Context, phase Phase, prefix string, out *lines) Result {
	began, before := time.Now(), readProcessors()
	result := Result{Phase: phase}
	out.print("\n== " + strings.Join(phase, " "))
	pipe, output := io.Pipe()
	cmd := r.Command(ctx, phase)
	cmd.Stdout, cmd.Stderr = output, output
	// make forwards the signal to its programs, which clean up.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	go func() { output.CloseWithError(cmd.Run()) }()
	counter := counter{phase: phase}
	printed := bufio.NewReader(pipe)
	for {
		line, err := printed.ReadString('\n')
		if line != "" {
			line = strings.TrimSuffix(line, "\n")
			counter.read(line)
			out.print(prefix + line)
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

// lines prints whole lines of several phases.
type lines struct {
	mu  sync.Mutex
	out io.Writer
}

func (l *lines) print(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.out, line)
}

// Sum prints the results and the time that all took together, and reports whether all phases passed.
func Sum(out io.Writer, results []Result, took time.Duration) (passed bool) {
	passed = true
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nPHASE\tRESULT\tTIME\tPROCESSORS\tPASSED")
	for _, r := range results {
		outcome := "passed"
		if r.Err != nil {
			outcome, passed = "FAILED", false
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%.0f %%\t%s\n", strings.Join(r.Phase, " "), outcome, r.Took.Round(time.Second), 100*r.Busy, r.Passed())
	}
	fmt.Fprintf(table, "\t\t%s\n", took.Round(time.Second))
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
