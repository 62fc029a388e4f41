package kernels

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/tools/kernels/guest"
)

// base returns a result with the fields that all results of a step have.
func (j Tester) base(k Kernel, step string) Result {
	backend, name := readStepName(step)
	return Result{Kernel: k.String(), Release: k.Release, Backend: backend, Case: name, Outcome: conformance.Passed, Commit: j.Commit, Date: time.Now().UTC().Format(time.DateOnly)}
}

// hasReport reports whether the case is one of the conformance suite. Tests have only an exit status.
func hasReport(name string) bool { return name != Preflight && name != Fixtures }

// read returns the results of a step. A problem of the whole step is a failure of each address family in its report, or a failure without a family if there is
// no report.
func (j Tester) read(k Kernel, e StepResult, dir string) []Result {
	base := j.base(k, e.Step.Name)
	found := []Result{base}
	var problems []string
	if hasReport(base.Case) {
		runs, err := j.readReport(base, filepath.Join(dir, e.Step.Name))
		if len(runs) > 0 {
			found = runs
		}
		problems = problemsOfCase(e, found, err)
	} else {
		problems = problemsOfTest(e)
	}
	if len(problems) == 0 {
		return found
	}
	for i, r := range found {
		reasons := problems
		if r.Outcome == conformance.Failed {
			reasons = append(slices.Clone(problems), r.Reason)
		}
		found[i].Outcome, found[i].Reason = conformance.Failed, strings.Join(reasons, "\n")
	}
	return found
}

// problemsOfStep returns the problems that the machine and the guest found with the step.
func problemsOfStep(e StepResult) (problems []string) {
	if e.KernelError != "" {
		problems = append(problems, e.KernelError)
	}
	if e.Status == guest.StatusLimit {
		problems = append(problems, fmt.Sprintf("it exceeded the limit of %s", e.Step.Limit))
	}
	return problems
}

func problemsOfTest(e StepResult) []string {
	problems := problemsOfStep(e)
	if len(problems) == 0 && e.Status != 0 {
		problems = append(problems, fmt.Sprintf("exit status %d", e.Status))
	}
	return problems
}

// problemsOfCase adds problems with the report, and an exit status that the report does not explain.
func problemsOfCase(e StepResult, runs []Result, unread error) []string {
	problems := problemsOfStep(e)
	failed := slices.ContainsFunc(runs, func(r Result) bool { return r.Outcome == conformance.Failed })
	switch {
	case len(problems) > 0:
	case unread != nil:
		problems = append(problems, fmt.Sprintf("%v (exit status %d)", unread, e.Status))
	case e.Status != 0 && !failed:
		problems = append(problems, fmt.Sprintf("exit status %d, although the report has no failure", e.Status))
	}
	return problems
}

// readReport returns a result for each address family of a report.
func (j Tester) readReport(base Result, path string) ([]Result, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("the case wrote no report")
	}
	if err != nil {
		return nil, fmt.Errorf("the report cannot be read: %w", err)
	}
	report, err := conformance.ReadReport(text)
	if err != nil {
		return nil, fmt.Errorf("the report cannot be read: %w", err)
	}
	if len(report.Runs) == 0 {
		return nil, errors.New("the report is empty")
	}
	var found []Result
	for _, run := range report.Runs {
		r := base
		r.Family, r.Outcome, r.Reason, r.Patience = run.Family, run.Outcome, run.Reason, j.Patience
		found = append(found, r)
	}
	return found, nil
}
