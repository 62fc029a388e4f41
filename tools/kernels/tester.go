package kernels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/tools/kernels/guest"
	"kubelb.k8c.io/tools/results"
)

// Fixtures is the name of the packet fixtures of the eBPF programs, which count as a case.
const Fixtures = "packet-fixtures"

// Preflight is the name of the test of kubelb-manager preflight, which counts as a case: the commands that preflight names fix what is missing.
const Preflight = "preflight"

// Result is the result of a case on a kernel.
type Result struct {
	// Kernel is series and architecture, Release the output of uname -r.
	Kernel  string `json:"kernel"`
	Release string `json:"release"`
	Backend string `json:"backend"`
	Case    string `json:"case"`
	// Family is empty if the case does not run for each address family.
	Family  string              `json:"family,omitempty"`
	Outcome conformance.Outcome `json:"outcome"`
	Reason  string              `json:"reason,omitempty"`
	// Patience is the factor by which timeouts were longer (lab.Patience).
	Patience float64 `json:"patience,omitempty"`
	// Commit is the tested commit. A suffix "-dirty" means that there were uncommitted changes.
	Commit string `json:"commit,omitempty"`
	// Date is the day.
	Date string `json:"date"`
}

// Tester tests dataplanes on a kernel.
type Tester struct {
	// Backends are the names of dataplanes, Cases the names of cases for each of them; empty means all cases.
	Backends, Cases []string
	// Modules are loaded after the boot of a kernel.
	Modules  []string
	Patience float64
	// Programs is the directory of the programs for the kernel's architecture: init, kubelb-conformance, ebpf.test and the plugins.
	Programs, Userland string
	// Results is the file to which each case adds its results when it ends (package results). A case whose last run on this kernel's release has no failure is
	// not tested again.
	Results string
	// Commit is the tested commit.
	Commit  string
	Console io.Writer
	Silence time.Duration
}

// Results has the results of a kernel's release: Current those of this run, Earlier those of earlier runs that this run has not replaced, of all dataplanes.
type Results struct{ Current, Earlier []Result }

// Count returns the number of results of an outcome.
func (j Results) Count(o conformance.Outcome) (n int) {
	for _, r := range slices.Concat(j.Current, j.Earlier) {
		if r.Outcome == o {
			n++
		}
	}
	return n
}

// Check returns an error that names each dataplane without a program and each unknown case. Without it, these errors would show up only after a boot.
func (j Tester) Check() error {
	var errs []error
	check := func(kind string, names, known []string) {
		for _, name := range names {
			if !slices.Contains(known, name) {
				errs = append(errs, fmt.Errorf("there is no %s %q; known are %s", kind, name, strings.Join(known, ", ")))
			}
		}
	}
	check("dataplane", j.Backends, j.installed())
	check("case", j.Cases, allCases())
	return errors.Join(errs...)
}

// allCases returns the names of all cases.
func allCases() []string { return append([]string{Preflight, Fixtures}, conformance.Names()...) }

// Run tests cases that have not been tested or have failed. It returns the results also in case of an error.
func (j Tester) Run(ctx context.Context, k Kernel) (Results, error) {
	known, err := results.Read[Result](j.Results)
	if err != nil {
		return Results{}, err
	}
	known = lastRuns(slices.DeleteFunc(known, func(r Result) bool { return r.Kernel != k.String() || r.Release != k.Release }))
	work, err := os.MkdirTemp("", "kltester")
	if err != nil {
		return Results{Earlier: known}, err
	}
	defer os.RemoveAll(work)
	steps := slices.DeleteFunc(j.steps(k, work), func(s guest.Step) bool { return hasPassed(known, j.base(k, s.Name).testedCase()) })
	now, err := j.test(ctx, k, steps, work)
	before := slices.DeleteFunc(known, func(r Result) bool {
		return slices.ContainsFunc(now, func(n Result) bool { return n.testedCase() == r.testedCase() })
	})
	return Results{Current: now, Earlier: before}, err
}

// test runs the steps, and stores the results of each step as soon as it has ended.
func (j Tester) test(ctx context.Context, k Kernel, steps []guest.Step, work string) (found []Result, err error) {
	if len(steps) == 0 {
		return nil, nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err = j.runSteps(ctx, k, steps, work, func(e StepResult) {
		fromStep := j.read(k, e, work)
		found = append(found, fromStep...)
		for _, r := range fromStep {
			if err := results.Add(j.Results, r); err != nil {
				stop(fmt.Errorf("store a result: %w", err))
				return
			}
		}
	})
	return found, err
}

// runSteps runs the steps on the kernel, and writes their reports into the directory.
func (j Tester) runSteps(ctx context.Context, k Kernel, steps []guest.Step, reports string, ended func(StepResult)) error {
	if k.Running() {
		return runHere(ctx, steps, j.Console, ended)
	}
	files, err := j.files()
	if err != nil {
		return err
	}
	return bootAfterCrashes(steps, ended, func(rest []guest.Step, ended func(StepResult)) error {
		fmt.Fprintf(j.Console, "kernels: booting for %d steps\n", len(rest))
		_, err := k.Boot(ctx, Run{Plan: guest.Plan{Modules: j.Modules, Steps: rest}, Files: files, Userland: j.Userland, Init: filepath.Join(j.Programs, "init"),
			ResultsDir: reports, Ended: ended, Console: j.Console, Silence: j.Silence})
		return err
	})
}

// bootAfterCrashes boots a machine for all steps, and after a crash another one for the remaining steps. The step that ran at a crash counts as ended. It stops
// after a boot in which no step ended.
func bootAfterCrashes(steps []guest.Step, ended func(StepResult), boot func([]guest.Step, func(StepResult)) error) error {
	var errs []error
	for len(steps) > 0 {
		rest := steps
		end := func(e StepResult) {
			rest = slices.DeleteFunc(slices.Clone(rest), func(s guest.Step) bool { return s.Name == e.Step.Name })
			ended(e)
		}
		err := boot(steps, end)
		var crash *Crash
		if !errors.As(err, &crash) {
			return errors.Join(append(errs, err)...)
		}
		if crash.Step.Name != "" {
			end(StepResult{Step: crash.Step, Status: statusUnknown, KernelError: crash.Reason})
		} else {
			errs = append(errs, err) // the crash belongs to no step
		}
		if len(rest) == len(steps) {
			break
		}
		steps = rest
	}
	return errors.Join(errs...)
}

// statusUnknown is the exit status of a step during which the machine crashed.
const statusUnknown = -1

// programsDir is the directory of the programs in the guest.
const programsDir = "/programs"

func (j Tester) files() (map[string]string, error) {
	entries, err := os.ReadDir(j.Programs)
	if err != nil {
		return nil, fmt.Errorf("programs for the kernel (make guest): %w", err)
	}
	files := map[string]string{}
	for _, e := range entries {
		files[programsDir+"/"+e.Name()] = filepath.Join(j.Programs, e.Name())
	}
	return files, nil
}

func stepName(backend, name string) string { return backend + ":" + name }

func readStepName(step string) (backend, name string) {
	backend, name, _ = strings.Cut(step, ":")
	return backend, name
}

// installed returns the names of all dataplanes with a program. The case "switching" switches to each of them.
func (j Tester) installed() []string {
	const prefix = "kubelb-backend-"
	found, _ := filepath.Glob(filepath.Join(j.Programs, prefix+"*"))
	var names []string
	for _, path := range found {
		names = append(names, strings.TrimPrefix(filepath.Base(path), prefix))
	}
	return names
}

// preflightTests are the tests of tools/preflight that can run in a guest.
const preflightTests = "^(TestAReadyHostLacksNothing|TestTheCommandOfAFixSolvesTheProblem|TestTheCommandOfAFixLoadsAModule)$"

// Time limits of a case of the suite, which runs both address families at once, and of a test, also under emulation. A test has a shorter limit of its own, at
// which it prints what it was doing.
const (
	limitOfCase  = 15 * time.Minute
	limitOfTests = 40 * time.Minute
)

// steps returns a step for each dataplane and case, so that each result can be stored at once. Steps on this machine write their reports into work.
func (j Tester) steps(k Kernel, work string) []guest.Step {
	others := j.installed()
	programs, reports, unload := programsDir, guest.ResultsDir, "1"
	if k.Running() {
		programs, reports, unload = j.Programs, work, ""
	}
	cases := j.Cases
	if len(cases) == 0 {
		cases = allCases()
	}
	var steps []guest.Step
	for _, backend := range j.Backends {
		for _, name := range cases {
			step := guest.Step{Name: stepName(backend, name), Limit: limitOfCase}
			switch {
			case name == Preflight:
				step.Limit = limitOfTests
				step.Args = []string{programs + "/preflight.test", "-test.run=" + preflightTests, "-test.timeout=30m", "-test.v"}
				step.Env = []string{"KUBELB_BIN=" + programs, "KUBELB_BACKEND=" + backend, "KUBELB_UNLOAD_MODULES=" + unload}
			case name == Fixtures && backend != "ebpf":
				continue
			case name == Fixtures:
				step.Limit = limitOfTests
				step.Args = []string{programs + "/ebpf.test", "-test.run=^TestPacketsBecomeWhatTheyShould$", "-test.timeout=30m"}
			default:
				step.Args = []string{programs + "/kubelb-conformance", "--backend=" + backend, "--case=" + name, fmt.Sprintf("--patience=%g", j.Patience),
					"--switch-to=" + strings.Join(others, ","), "--report=" + reports + "/" + step.Name, "-v"}
				if backend == "envoy" && j.Patience > 1 {
					// Envoy forgets UDP sessions after a minute without a packet. Under emulation, a case may need that long between two packets.
					step.Args = append(step.Args, "--backend-option=udp-idle-timeout="+(time.Duration(j.Patience*float64(time.Minute))).String())
				}
			}
			steps = append(steps, step)
		}
	}
	return steps
}
