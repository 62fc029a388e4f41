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

// Fixtures is the name by which the packet fixtures of the eBPF programs stand among the cases of the conformance suite.
const Fixtures = "packet-fixtures"

// Preflight is the name by which the test stands among the cases that what kubelb-manager preflight finds missing is there after the command that it names.
const Preflight = "preflight"

// Result is what came of a case on a kernel.
type Result struct {
	// Kernel is series and architecture, Release what uname -r says.
	Kernel  string `json:"kernel"`
	Release string `json:"release"`
	Backend string `json:"backend"`
	Case    string `json:"case"`
	// Family is empty where the case makes no difference between families.
	Family  string              `json:"family,omitempty"`
	Outcome conformance.Outcome `json:"outcome"`
	Reason  string              `json:"reason,omitempty"`
	// Patience is how many times as long as usual the case waited (lab.Patience).
	Patience float64 `json:"patience,omitempty"`
	// Commit is the code that was judged, as git names it; "-dirty" at its end says that there was more than that.
	Commit string `json:"commit,omitempty"`
	// Date is the day.
	Date string `json:"date"`
}

// Judge says what to judge on a kernel.
type Judge struct {
	// Backends by name, the cases of the conformance suite for each of them; no cases means all.
	Backends, Cases []string
	// Modules are loaded first, where a kernel is booted.
	Modules  []string
	Patience float64
	// Programs is the directory of the programs for the kernel's architecture: init, kubelb-conformance, ebpf.test and the backends.
	Programs, Userland string
	// Results is the file that results are added to (package results), those of each case as it ends. A case of which the last run on this kernel's
	// release has no failure is not judged again.
	Results string
	// Commit is the code that is judged.
	Commit  string
	Console io.Writer
	Silence time.Duration
}

// Judged is what is known of a kernel's release: what has just been found, and of earlier runs what that has not replaced, whatever the dataplane.
type Judged struct{ Now, Before []Result }

// Count returns the number of results of an outcome.
func (j Judged) Count(o conformance.Outcome) (n int) {
	for _, r := range slices.Concat(j.Now, j.Before) {
		if r.Outcome == o {
			n++
		}
	}
	return n
}

// Check returns an error that names each backend without a program and each case that is not there. It takes no time, while to find that out on a kernel
// takes a boot.
func (j Judge) Check() error {
	var errs []error
	unknown := func(kind string, asked, known []string) {
		for _, name := range asked {
			if !slices.Contains(known, name) {
				errs = append(errs, fmt.Errorf("there is no %s %q; there are %s", kind, name, strings.Join(known, ", ")))
			}
		}
	}
	unknown("dataplane", j.Backends, j.installed())
	unknown("case", j.Cases, allCases())
	return errors.Join(errs...)
}

// allCases are the names by which a case can be asked for.
func allCases() []string { return append([]string{Preflight, Fixtures}, conformance.Names()...) }

// Run judges what has not been judged yet, or has failed. What has been found is returned with an error, too.
func (j Judge) Run(ctx context.Context, k Kernel) (Judged, error) {
	known, err := results.Read[Result](j.Results)
	if err != nil {
		return Judged{}, err
	}
	known = lastRuns(slices.DeleteFunc(known, func(r Result) bool { return r.Kernel != k.String() || r.Release != k.Release }))
	work, err := os.MkdirTemp("", "kljudge")
	if err != nil {
		return Judged{Before: known}, err
	}
	defer os.RemoveAll(work)
	steps := slices.DeleteFunc(j.steps(k, work), func(s guest.Step) bool { return holds(known, j.base(k, s.Name).judgedCase()) })
	now, err := j.judge(ctx, k, steps, work)
	before := slices.DeleteFunc(known, func(r Result) bool {
		return slices.ContainsFunc(now, func(n Result) bool { return n.judgedCase() == r.judgedCase() })
	})
	return Judged{Now: now, Before: before}, err
}

// judge has the steps run, and keeps what came of each as soon as it has ended.
func (j Judge) judge(ctx context.Context, k Kernel, steps []guest.Step, work string) (found []Result, err error) {
	if len(steps) == 0 {
		return nil, nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err = j.carryOut(ctx, k, steps, work, func(e Ending) {
		of := j.read(k, e, work)
		found = append(found, of...)
		for _, r := range of {
			if err := results.Add(j.Results, r); err != nil {
				stop(fmt.Errorf("keep a result: %w", err))
				return
			}
		}
	})
	return found, err
}

// carryOut has the steps run on the kernel, and their reports written into the directory.
func (j Judge) carryOut(ctx context.Context, k Kernel, steps []guest.Step, reports string, ended func(Ending)) error {
	if k.Running() {
		return runHere(ctx, steps, j.Console, ended)
	}
	files, err := j.files()
	if err != nil {
		return err
	}
	return carryOn(steps, ended, func(rest []guest.Step, ended func(Ending)) error {
		fmt.Fprintf(j.Console, "kernels: booting for %d steps\n", len(rest))
		_, err := k.Boot(ctx, Run{Plan: guest.Plan{Modules: j.Modules, Steps: rest}, Files: files, Userland: j.Userland, Init: filepath.Join(j.Programs, "init"),
			ResultsDir: reports, Ended: ended, Console: j.Console, Silence: j.Silence})
		return err
	})
}

// carryOn boots a machine for all steps, and after a crash another one for those that have not ended. The step of a crash has ended with it. Each boot
// leaves fewer steps, or is the last.
func carryOn(steps []guest.Step, ended func(Ending), boot func([]guest.Step, func(Ending)) error) error {
	var errs []error
	for len(steps) > 0 {
		rest := steps
		end := func(e Ending) {
			rest = slices.DeleteFunc(slices.Clone(rest), func(s guest.Step) bool { return s.Name == e.Step.Name })
			ended(e)
		}
		err := boot(steps, end)
		var crash *Crash
		if !errors.As(err, &crash) {
			return errors.Join(append(errs, err)...)
		}
		if crash.Step.Name != "" {
			end(Ending{Step: crash.Step, Status: statusUnknown, Trouble: crash.Reason})
		} else {
			errs = append(errs, err) // it is held against no step
		}
		if len(rest) == len(steps) {
			break
		}
		steps = rest
	}
	return errors.Join(errs...)
}

// statusUnknown is the exit status of a step that the machine's end kept from having one.
const statusUnknown = -1

// programsDir is where the guest has the programs.
const programsDir = "/programs"

func (j Judge) files() (map[string]string, error) {
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

// installed are the names of all backends whose programs are there: the case of switching goes to each.
func (j Judge) installed() []string {
	const prefix = "kubelb-backend-"
	found, _ := filepath.Glob(filepath.Join(j.Programs, prefix+"*"))
	var names []string
	for _, path := range found {
		names = append(names, strings.TrimPrefix(filepath.Base(path), prefix))
	}
	return names
}

// mendedByCommands are the tests of tools/preflight that need no more than a guest has.
const mendedByCommands = "^(TestAReadyHostLacksNothing|TestTheCommandOfAFixSolvesTheProblem|TestTheCommandOfAFixLoadsAModule)$"

// How long a case of the suite, in both families at once, and how long a test may take, under emulation as well. A test has a limit of its own, below this,
// at which it says what it was at.
const (
	limitOfCase  = 15 * time.Minute
	limitOfTests = 40 * time.Minute
)

// steps are a step for each backend and case, so that what has been judged is kept when the rest is not. Those that run on this machine write
// their reports into work.
func (j Judge) steps(k Kernel, work string) []guest.Step {
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
				step.Args = []string{programs + "/preflight.test", "-test.run=" + mendedByCommands, "-test.timeout=30m", "-test.v"}
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
					// Envoy forgets UDP sessions after a minute without a packet, in which a case goes on by one step here.
					step.Args = append(step.Args, "--backend-option=udp-idle-timeout="+(time.Duration(j.Patience*float64(time.Minute))).String())
				}
			}
			steps = append(steps, step)
		}
	}
	return steps
}
