package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	// Progress, if set, is called after each run.
	Progress func(Run)
}

// Outcome of a run of a case.
type Outcome string

// The outcomes. Unsupported: the backend does not declare a feature that the case needs. It does not count as passed.
const (
	Passed      Outcome = "passed"
	Failed      Outcome = "failed"
	Unsupported Outcome = "unsupported"
)

// ReportVersion is the version of Report's format.
const ReportVersion = "v1"

// Report has the results of all runs of a backend.
type Report struct {
	Version string  `json:"version"`
	Backend Backend `json:"backend"`
	// Kernel is the release of the kernel.
	Kernel string `json:"kernel"`
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
	// Reason says why the case is unsupported, or what failed.
	Reason string `json:"reason,omitempty"`
	// Measured are numbers that the run measured.
	Measured []string `json:"measured,omitempty"`
	// Log has the lines that backend and case wrote, Trace the last packets at the gateways. Both are set if the run failed.
	Log   string `json:"-"`
	Trace string `json:"-"`
}

// RunCases runs the cases against a backend. It needs root. It returns an error if it could not test the backend.
func RunCases(ctx context.Context, backend cases.Backend, options Options) (Report, error) {
	chosen, err := options.choose()
	if err != nil {
		return Report{}, err
	}
	if options.UpgradeTo == nil {
		options.UpgradeTo = backend
	}
	description, err := describe(ctx, backend)
	if err != nil {
		return Report{}, err
	}
	begin := time.Now()
	report := Report{Version: ReportVersion, Kernel: kernelRelease(), Counts: map[Outcome]int{},
		Backend: Backend{description.Name, description.Version, slices.Sorted(slices.Values(description.Features))}}
	r := runner{cases.Backends{Tested: backend, Next: options.UpgradeTo, Others: options.SwitchTo}, description, options.Patience}
	waiting := startWaiting(ctx, chosen, r)
	for _, c := range chosen {
		results := func() []Run { return runInFamilies(ctx, c, r) }
		if c.Waits {
			results = func() []Run { return <-waiting[c.Name] }
		}
		for _, run := range results() {
			if err := ctx.Err(); err != nil {
				return report, err
			}
			report.Runs = append(report.Runs, run)
			report.Counts[run.Outcome]++
			if options.Progress != nil {
				options.Progress(run)
			}
		}
	}
	report.Duration = time.Since(begin).Round(time.Second).String()
	return report, nil
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

// describe starts the backend on a host of its own and returns its description.
func describe(ctx context.Context, backend cases.Backend) (description dataplane.Description, err error) {
	l := netlab.New(lab.Prefix)
	defer func() { err = errors.Join(err, l.Close()) }()
	host, err := l.Namespace("described")
	if err != nil {
		return description, err
	}
	process, err := backend.Start(ctx, host, discard{})
	if err != nil {
		return description, err
	}
	defer process.Stop()
	return process.Describe(ctx)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// startWaiting starts the cases that mostly wait. Each channel gets the runs of one case.
func startWaiting(ctx context.Context, chosen []cases.Case, r runner) map[string]chan []Run {
	waiting := map[string]chan []Run{}
	for _, c := range chosen {
		if c.Waits {
			done := make(chan []Run, 1)
			waiting[c.Name] = done
			go func() { done <- runInFamilies(ctx, c, r) }()
		}
	}
	return waiting
}

// runInFamilies runs the case in both address families at once, because a case mostly waits.
func runInFamilies(ctx context.Context, c cases.Case, r runner) []Run {
	families := []bool{true, false}
	if c.OneFamily {
		families = families[:1]
	}
	runs := make([]Run, len(families))
	var all sync.WaitGroup
	for i, v4 := range families {
		all.Go(func() { runs[i] = r.run(ctx, c, v4) })
	}
	all.Wait()
	return runs
}

// runner runs cases against one backend.
type runner struct {
	backends    cases.Backends
	description dataplane.Description
	patience    lab.Patience
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
	outcome := cases.Run(ctx, c, r.backends, v4, r.patience)
	run.Measured = outcome.Measured
	run.Duration = outcome.Duration.Round(10 * time.Millisecond).String()
	if len(outcome.Failures) > 0 {
		run.Outcome, run.Reason, run.Log, run.Trace = Failed, strings.Join(outcome.Failures, "\n"), outcome.Log, outcome.Trace
	}
	return run
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// Test runs the cases as subtests. It skips unsupported cases, with the reason.
func Test(t *testing.T, backend cases.Backend, options Options) Report {
	t.Helper()
	options.Progress = func(r Run) {
		t.Run(r.Case+"/"+r.Family, func(t *testing.T) {
			switch r.Outcome {
			case Failed:
				t.Errorf("not true: %s\n%s\n%s", r.Shows, r.Reason, r.Log)
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
