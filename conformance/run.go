package conformance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/conformance/netlab"
)

// Options choose what runs.
type Options struct {
	// Cases are names; empty means all.
	Cases []string
	// Feature, if set, selects the cases that need it.
	Feature dataplane.Feature
	// UpgradeTo is another build of the backend; nil means the tested build.
	UpgradeTo cases.Backend
	// SwitchTo are other backends, for the case "switching".
	SwitchTo []cases.Backend
	// Patience multiplies all timeouts, for slow machines.
	Patience lab.Patience
	// Parallel is the number of cases that run side by side, each with labs of its own; 0 means 1. The order of the report stays the same.
	Parallel int
	// FirstFailure runs a case in one address family after the other, and in none after it has failed. It is for backends that are known to fail.
	FirstFailure bool
	// KeepGoing goes on after three cases in a row in which the backend hangs.
	KeepGoing bool
	// Progress, if set, is called after each run.
	Progress func(Run)
	// Notice, if set, gets lines about what is judged, and what an earlier suite left.
	Notice func(line string)
	// Monitor, if set, tells what runs.
	Monitor *Monitor
	// Command, if set, returns the command that runs a case alone. It becomes part of the result of a failed run.
	Command func(name string) string
}

// Outcome of a run of a case.
type Outcome string

// The outcomes. Unsupported: the backend does not declare a feature that the case needs. It does not count as passed.
const (
	Passed      Outcome = "passed"
	Failed      Outcome = "failed"
	Unsupported Outcome = "unsupported"
)

// ReportVersion is the version of Report's format. Version v1 did not say how the backend was judged.
const ReportVersion = "v2"

// Report has the results of all runs of a backend.
type Report struct {
	Version string `json:"version"`
	// Partial says why the suite did not run to its end. It is empty if it did.
	Partial string  `json:"partial,omitempty"`
	Suite   Suite   `json:"suite,omitzero"`
	Backend Backend `json:"backend"`
	// Judgement says which file was judged, how, and by which cases.
	Judgement Judgement `json:"judgement,omitzero"`
	// Kernel is the release of the kernel, Machine the architecture.
	Kernel  string `json:"kernel"`
	Machine string `json:"machine,omitempty"`
	// Began is when the suite began (RFC 3339).
	Began string `json:"began,omitempty"`
	// Counts are the numbers of runs by outcome. A case runs once in each address family.
	Counts   map[Outcome]int `json:"counts"`
	Duration string          `json:"duration"`
	Runs     []Run           `json:"runs"`
}

// Backend describes the tested backend.
type Backend struct {
	Name     string              `json:"name"`
	Version  string              `json:"version"`
	Features []dataplane.Feature `json:"features"`
}

// Run is one run of a case, in one address family.
type Run struct {
	Case     string              `json:"case"`
	Shows    string              `json:"shows"`
	Profile  cases.Profile       `json:"profile"`
	Needs    []dataplane.Feature `json:"needs,omitempty"`
	Family   string              `json:"family"`
	Outcome  Outcome             `json:"outcome"`
	Duration string              `json:"duration,omitempty"`
	// Reason says why the case is unsupported, or what was expected and what was seen instead.
	Reason string `json:"reason,omitempty"`
	// Command runs a failed case alone.
	Command string `json:"command,omitempty"`
	// Measured are numbers that the run measured.
	Measured []string `json:"measured,omitempty"`
	// interrupted: the run has no result, because the suite was interrupted.
	interrupted bool
	// Failures are the checks that failed. Hung is the call that the backend did not answer in time. Deaths are the processes of backends that ended by
	// themselves.
	Failures []cases.Failure `json:"-"`
	Hung     string          `json:"-"`
	Deaths   []cases.Death   `json:"-"`
	// Log has the lines that backend and case wrote, Trace the last packets at the gateways before the first failure. Both are set if the run
	// failed.
	Log   string `json:"-"`
	Trace string `json:"-"`
}

// RunCases runs the cases against a backend. It needs root. It returns an error if it could not test the backend, or not to the end. Then
// the report is partial: it has the runs that were done.
func RunCases(ctx context.Context, backend cases.Backend, options Options) (Report, error) {
	chosen, err := options.choose()
	if err != nil {
		return Report{}, err
	}
	begin := time.Now()
	report := Report{Version: ReportVersion, Suite: suite(), Began: begin.UTC().Format(time.RFC3339), Counts: map[Outcome]int{}}
	report.Kernel, report.Machine = kernel()
	if report.Judgement, err = judgement(backend, options); err != nil {
		return report, err
	}
	left, err := netlab.Sweep(lab.Prefix)
	if err != nil {
		return report, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	if !left.Empty() {
		options.notice(fmt.Sprintf("removed what an earlier run left: %s", left))
	}
	if options.UpgradeTo == nil {
		options.UpgradeTo = backend
	}
	r := runner{backends: cases.Backends{Tested: backend, Next: options.UpgradeTo, Others: options.SwitchTo}, options: options}
	if r.description, err = r.describe(ctx); err != nil && ctx.Err() != nil {
		return report, fmt.Errorf("%w before the first case (%w)", errInterrupted, err)
	} else if err != nil {
		return report, fmt.Errorf("the backend cannot be tested: %w", err)
	}
	report.Backend = Backend{r.description.Name, r.description.Version, slices.Sorted(slices.Values(r.description.Features))}
	for line := range strings.Lines(report.Describe()) {
		options.notice(strings.TrimSuffix(line, "\n"))
	}
	err = r.runAll(ctx, chosen, func(run Run) {
		report.Runs = append(report.Runs, run)
		report.Counts[run.Outcome]++
		if options.Progress != nil {
			options.Progress(run)
		}
	})
	if err == nil {
		err = report.Judgement.unchanged(backend)
	}
	if err != nil {
		report.Partial = err.Error()
	}
	report.Duration = time.Since(begin).Round(time.Second).String()
	return report, err
}

func (o Options) notice(line string) {
	if o.Notice != nil {
		o.Notice(line)
	}
}

func (o Options) choose() ([]cases.Case, error) {
	all := cases.All()
	for _, name := range o.Cases {
		if !slices.ContainsFunc(all, func(c cases.Case) bool { return c.Name == name }) {
			return nil, fmt.Errorf("case %q does not exist; the cases are %s", name, strings.Join(Names(), ", "))
		}
	}
	chosen := slices.DeleteFunc(all, func(c cases.Case) bool {
		return len(o.Cases) > 0 && !slices.Contains(o.Cases, c.Name) || o.Feature != "" && !slices.Contains(c.Needs, o.Feature)
	})
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no case needs the feature %q", o.Feature)
	}
	return chosen, nil
}

// Names returns the names of all cases, in the order in which they run.
func Names() []string {
	var names []string
	for _, c := range cases.All() {
		names = append(names, c.Name)
	}
	return names
}

// runner runs cases against one backend.
type runner struct {
	backends    cases.Backends
	description dataplane.Description
	options     Options
}

// describe asks the backend for its description, within the time limits of a case.
func (r runner) describe(ctx context.Context) (dataplane.Description, error) {
	activity, end := r.options.Monitor.begin("describe", "")
	defer end()
	return cases.Describe(ctx, cases.Setting{Backends: r.backends, Patience: r.options.Patience, Activity: activity})
}

// runInFamilies runs the case in both address families at once, because a case mostly waits.
func (r runner) runInFamilies(ctx context.Context, c cases.Case) []Run {
	families := []bool{true, false}
	if c.OneFamily {
		families = families[:1]
	}
	if r.options.FirstFailure {
		return r.runUntilFailure(ctx, c, families)
	}
	runs := make([]Run, len(families))
	var all sync.WaitGroup
	for i, v4 := range families {
		all.Go(func() { runs[i] = r.run(ctx, c, v4) })
	}
	all.Wait()
	return runs
}

// runUntilFailure runs the case in one address family after the other, until it fails.
func (r runner) runUntilFailure(ctx context.Context, c cases.Case, families []bool) (runs []Run) {
	for _, v4 := range families {
		run := r.run(ctx, c, v4)
		if runs = append(runs, run); run.Outcome == Failed {
			break
		}
	}
	return runs
}

func (r runner) run(ctx context.Context, c cases.Case, v4 bool) Run {
	run := Run{Case: c.Name, Shows: c.Shows, Profile: c.Profile(), Needs: c.Needs, Family: "IPv6", Outcome: Passed}
	if v4 {
		run.Family = "IPv4"
	}
	for _, need := range c.Needs {
		if !slices.Contains(r.description.Features, need) {
			run.Outcome, run.Reason = Unsupported, fmt.Sprintf("the backend does not declare the feature %s", need)
			return run
		}
	}
	if c.Switches && len(r.backends.Others) == 0 {
		run.Outcome, run.Reason = Unsupported, "there is no other backend to switch to: give one with --switch-to"
		return run
	}
	activity, end := r.options.Monitor.begin(c.Name, run.Family)
	defer end()
	outcome := cases.Run(ctx, c, cases.Setting{Backends: r.backends, V4: v4, Patience: r.options.Patience, Activity: activity})
	run.Measured, run.interrupted = outcome.Measured, outcome.Interrupted
	run.Duration = outcome.Duration.Round(10 * time.Millisecond).String()
	if len(outcome.Failures) == 0 {
		return run
	}
	run.Outcome, run.Log, run.Trace = Failed, outcome.Log, outcome.Trace
	if c.Untraced {
		run.Trace = "this case has too many packets to trace"
	}
	run.Failures, run.Hung, run.Deaths = outcome.Failures, outcome.Hung, outcome.Deaths
	run.Reason = reason(outcome.Failures)
	if r.options.Command != nil {
		run.Command = r.options.Command(c.Name)
	}
	return run
}

// Test runs the cases as subtests. It skips unsupported cases, with the reason.
func Test(t *testing.T, backend cases.Backend, options Options) Report {
	t.Helper()
	options.Progress = func(r Run) {
		t.Run(r.Case+"/"+r.Family, func(t *testing.T) {
			switch r.Outcome {
			case Failed:
				t.Errorf("%s\n%s", r.Explanation(true), r.Log)
			case Unsupported:
				t.Skip(r.Reason)
			}
			t.Log(r.Duration)
		})
	}
	report, err := RunCases(t.Context(), backend, options)
	if err != nil {
		t.Fatal(err)
	}
	return report
}
