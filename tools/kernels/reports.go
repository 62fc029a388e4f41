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

// base is what all results of a step have in common.
func (j Judge) base(k Kernel, step string) Result {
	backend, name := readStepName(step)
	return Result{Kernel: k.String(), Release: k.Release, Backend: backend, Case: name, Outcome: conformance.Passed, Commit: j.Commit, Date: time.Now().UTC().Format(time.DateOnly)}
}

// leavesReport tells whether the case is one of the conformance suite: tests have their exit status alone.
func leavesReport(name string) bool { return name != Preflight && name != Fixtures }

// read makes results of what a step left. What is wrong with the step as a whole is a failure of each family that its report has, and if it has none it is
// one without a family.
func (j Judge) read(k Kernel, e Ending, dir string) []Result {
	base := j.base(k, e.Step.Name)
	found := []Result{base}
	var wrong []string
	if leavesReport(base.Case) {
		runs, err := j.readReport(base, filepath.Join(dir, e.Step.Name))
		if len(runs) > 0 {
			found = runs
		}
		wrong = wrongOfCase(e, found, err)
	} else {
		wrong = wrongOfTest(e)
	}
	if len(wrong) == 0 {
		return found
	}
	for i, r := range found {
		reasons := wrong
		if r.Outcome == conformance.Failed {
			reasons = append(slices.Clone(wrong), r.Reason)
		}
		found[i].Outcome, found[i].Reason = conformance.Failed, strings.Join(reasons, "\n")
	}
	return found
}

// wrongOfStep is what the machine and the guest have against the step.
func wrongOfStep(e Ending) (wrong []string) {
	if e.Trouble != "" {
		wrong = append(wrong, e.Trouble)
	}
	if e.Status == guest.StatusLimit {
		wrong = append(wrong, fmt.Sprintf("it ran for longer than %s", e.Step.Limit))
	}
	return wrong
}

func wrongOfTest(e Ending) []string {
	wrong := wrongOfStep(e)
	if len(wrong) == 0 && e.Status != 0 {
		wrong = append(wrong, fmt.Sprintf("exit status %d", e.Status))
	}
	return wrong
}

// wrongOfCase adds what is wrong with the report, and a status that it does not explain.
func wrongOfCase(e Ending, runs []Result, unread error) []string {
	wrong := wrongOfStep(e)
	failed := slices.ContainsFunc(runs, func(r Result) bool { return r.Outcome == conformance.Failed })
	switch {
	case len(wrong) > 0:
	case unread != nil:
		wrong = append(wrong, fmt.Sprintf("%v (exit status %d)", unread, e.Status))
	case e.Status != 0 && !failed:
		wrong = append(wrong, fmt.Sprintf("exit status %d, though its report has no failure", e.Status))
	}
	return wrong
}

// readReport returns a result for each family of a report.
func (j Judge) readReport(base Result, path string) ([]Result, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("it left no report")
	}
	if err != nil {
		return nil, fmt.Errorf("its report is not to be read: %w", err)
	}
	report, err := conformance.ReadReport(text)
	if err != nil {
		return nil, fmt.Errorf("its report is not to be read: %w", err)
	}
	if len(report.Runs) == 0 {
		return nil, errors.New("its report says nothing")
	}
	var found []Result
	for _, run := range report.Runs {
		r := base
		r.Family, r.Outcome, r.Reason, r.Patience = run.Family, run.Outcome, run.Reason, j.Patience
		found = append(found, r)
	}
	return found, nil
}
