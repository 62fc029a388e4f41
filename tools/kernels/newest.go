package kernels

import (
	"cmp"
	"slices"

	"kubelb.k8c.io/conformance"
)

// on is a dataplane on a kernel.
type on struct{ kernel, backend string }

// newest returns of each dataplane on each kernel what counts: of the newest release that it was judged on, the last run of each case. What was found on
// another release of the series is about another kernel.
func newest(all []Result) []Result {
	all = inOrder(all)
	release := map[on]string{}
	for _, r := range all {
		release[on{r.Kernel, r.Backend}] = r.Release
	}
	return lastRuns(slices.DeleteFunc(all, func(r Result) bool { return r.Release != release[on{r.Kernel, r.Backend}] }))
}

// inOrder returns results by their days, and those of a day as the file has them.
func inOrder(all []Result) []Result {
	return slices.SortedStableFunc(slices.Values(all), func(a, b Result) int { return cmp.Compare(a.Date, b.Date) })
}

// judgedCase is a case of a dataplane on a release of a kernel.
type judgedCase struct{ kernel, release, backend, name string }

func (r Result) judgedCase() judgedCase { return judgedCase{r.Kernel, r.Release, r.Backend, r.Case} }

// lastRuns leaves out what a later run of the same case has replaced. A run is all or nothing: a case that could not be judged has one result without
// a family, which is replaced by results of families, and the other way round.
func lastRuns(all []Result) []Result {
	runs := map[judgedCase][]Result{}
	var order []judgedCase
	for _, r := range inOrder(all) {
		at := r.judgedCase()
		if _, known := runs[at]; !known {
			order = append(order, at)
		}
		if beginsRun(runs[at], r) {
			runs[at] = nil
		}
		runs[at] = append(runs[at], r)
	}
	var last []Result
	for _, at := range order {
		last = append(last, runs[at]...)
	}
	return last
}

// beginsRun tells whether the result is not of the run that the others are of. A run has each family once, or none.
func beginsRun(run []Result, r Result) bool {
	return slices.ContainsFunc(run, func(other Result) bool {
		return other.Family == r.Family || other.Family == "" || r.Family == "" || other.Date != r.Date || other.Commit != r.Commit
	})
}

// holds tells whether the case has been judged and no result of it is a failure. The results are those of last runs.
func holds(last []Result, at judgedCase) bool {
	judged := false
	for _, r := range last {
		if r.judgedCase() != at {
			continue
		}
		if r.Outcome == conformance.Failed {
			return false
		}
		judged = true
	}
	return judged
}
