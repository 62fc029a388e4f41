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
	// Date is the day.
	Date string `json:"date"`
}

// Judge says what to judge on a kernel.
type Judge struct {
	// Backends by name, the cases of the conformance suite for each of them; no cases means all.
	Backends, Cases []string
	// Modules are loaded at first.
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
	steps := slices.DeleteFunc(j.steps(), func(s guest.Step) bool {
		backend, name := readStepName(s.Name)
		return slices.ContainsFunc(known, func(r Result) bool {
			return r.Kernel == k.String() && r.Release == k.Release && r.Backend == backend && r.Case == name && r.Outcome != conformance.Failed
		})
	})
	if len(steps) == 0 {
		return nil, nil
	}
	files, err := j.files()
	if err != nil {
		return nil, err
	}
	statuses, failed := k.Boot(ctx, Run{Plan: guest.Plan{Modules: j.Modules, Steps: steps}, Files: files, Userland: j.Userland, Init: filepath.Join(j.Programs, "init"),
		ResultsDir: work, Console: j.Console, Silence: j.Silence})
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

// steps are a step for each backend and case, so that what has been judged is kept when the rest is not.
func (j Judge) steps() []guest.Step {
	cases := j.Cases
	if len(cases) == 0 {
		cases = append([]string{Fixtures}, conformance.Names()...)
	}
	var steps []guest.Step
	for _, backend := range j.Backends {
		for _, name := range cases {
			step := guest.Step{Name: stepName(backend, name)}
			switch {
			case name != Fixtures:
				step.Args = []string{programsDir + "/kubelb-conformance", "--backend=" + backend, "--case=" + name, fmt.Sprintf("--patience=%g", j.Patience),
					"--switch-to=" + strings.Join(j.Backends, ","), "--report=" + guest.ResultsDir + "/" + step.Name, "-v"}
			case backend == "ebpf":
				step.Args = []string{programsDir + "/ebpf.test", "-test.run=^TestPacketsBecomeWhatTheyShould$", "-test.timeout=30m"}
			default:
				continue
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
	if err != nil { // fixtures write none, nor does a suite that could judge nothing
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
