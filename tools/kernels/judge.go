package kernels

import (
	"context"
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
	// Results is the file that results are added to (package results). What it has of this kernel's release is not judged again.
	Results string
	Console io.Writer
	Silence time.Duration
}

// Run judges what has not been judged yet, and returns what came of it.
func (j Judge) Run(ctx context.Context, k Kernel) ([]Result, error) {
	known, err := results.Read[Result](j.Results)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "kljudge")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	steps := slices.DeleteFunc(j.steps(k, work), func(s guest.Step) bool {
		backend, name := readStepName(s.Name)
		return slices.ContainsFunc(known, func(r Result) bool {
			return r.Kernel == k.String() && r.Release == k.Release && r.Backend == backend && r.Case == name && r.Outcome != conformance.Failed
		})
	})
	if len(steps) == 0 {
		return nil, nil
	}
	statuses, failed := j.carryOut(ctx, k, steps, work)
	var found []Result
	for _, s := range steps {
		status, ended := statuses[s.Name]
		if !ended {
			continue
		}
		of, err := j.read(k, s.Name, status, work)
		if err != nil {
			return found, err
		}
		found = append(found, of...)
	}
	for _, r := range found {
		if err := results.Add(j.Results, r); err != nil {
			return found, err
		}
	}
	return found, failed
}

// carryOut has the steps run on the kernel, and their reports written into the directory.
func (j Judge) carryOut(ctx context.Context, k Kernel, steps []guest.Step, reports string) (map[string]int, error) {
	if k.Running() {
		return runHere(ctx, steps, j.Console)
	}
	files, err := j.files()
	if err != nil {
		return nil, err
	}
	return k.Boot(ctx, Run{Plan: guest.Plan{Modules: j.Modules, Steps: steps}, Files: files, Userland: j.Userland, Init: filepath.Join(j.Programs, "init"),
		ResultsDir: reports, Console: j.Console, Silence: j.Silence})
}

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
const mendedByCommands = "^(TestAHostThatIsReadyIsSo|TestWhatIsMissingIsThereAfterItsCommand|TestAModuleThatIsNotLoadedIsThereAfterItsCommand)$"

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
		cases = append([]string{Preflight, Fixtures}, conformance.Names()...)
	}
	var steps []guest.Step
	for _, backend := range j.Backends {
		for _, name := range cases {
			step := guest.Step{Name: stepName(backend, name)}
			switch {
			case name == Preflight:
				step.Args = []string{programs + "/preflight.test", "-test.run=" + mendedByCommands, "-test.timeout=30m", "-test.v"}
				step.Env = []string{"KUBELB_BIN=" + programs, "KUBELB_BACKEND=" + backend, "KUBELB_UNLOAD_MODULES=" + unload}
			case name == Fixtures && backend != "ebpf":
				continue
			case name == Fixtures:
				step.Args = []string{programs + "/ebpf.test", "-test.run=^TestPacketsBecomeWhatTheyShould$", "-test.timeout=30m"}
			default:
				step.Args = []string{programs + "/kubelb-conformance", "--backend=" + backend, "--case=" + name, fmt.Sprintf("--patience=%g", j.Patience),
					"--switch-to=" + strings.Join(others, ","), "--report=" + reports + "/" + step.Name, "-v"}
			}
			steps = append(steps, step)
		}
	}
	return steps
}

// read makes results of what a step left.
func (j Judge) read(k Kernel, step string, status int, dir string) ([]Result, error) {
	backend, name := readStepName(step)
	base := Result{Kernel: k.String(), Release: k.Release, Backend: backend, Case: name, Outcome: conformance.Passed, Date: time.Now().UTC().Format(time.DateOnly)}
	text, err := os.ReadFile(filepath.Join(dir, step))
	if err != nil { // tests write none, nor does a suite that could judge nothing
		if status != 0 {
			base.Outcome, base.Reason = conformance.Failed, fmt.Sprintf("exit status %d", status)
		}
		return []Result{base}, nil
	}
	report, err := conformance.ReadReport(text)
	if err != nil {
		return nil, fmt.Errorf("step %s: %w", step, err)
	}
	var found []Result
	for _, run := range report.Runs {
		r := base
		r.Family, r.Outcome, r.Reason, r.Patience = run.Family, run.Outcome, run.Reason, j.Patience
		found = append(found, r)
	}
	return found, nil
}
