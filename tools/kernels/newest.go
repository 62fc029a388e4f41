package kernels

import (
	"cmp"
	"slices"

	"kubelb.k8c.io/conformance"
)

// dataplaneOnKernel is a dataplane on a kernel.
type dataplaneOnKernel struct{ kernel, backend string }

// newest returns the results that count: for each dataplane on each kernel, the last run of each case on the newest release on which the dataplane was tested.
func newest(all []Result) []Result {
	all = inOrder(all)
	release := map[dataplaneOnKernel]string{}
	for _, r := range all {
		release[dataplaneOnKernel{r.Kernel, r.Backend}] = r.Release
	}
	return lastRuns(slices.DeleteFunc(all, func(r Result) bool { return r.Release != release[dataplaneOnKernel{r.Kernel, r.Backend}] }))
}

// inOrder returns results by day. Results of one day stay in the order of the file.
func inOrder(all []Result) []Result {
	return slices.SortedStableFunc(slices.Values(all), func(a, b Result) int { return cmp.Compare(a.Date, b.Date) })
}

// testedCase is a case of a dataplane on a release of a kernel.
type testedCase struct{ kernel, release, backend, name string }

func (r Result) testedCase() testedCase { return testedCase{r.Kernel, r.Release, r.Backend, r.Case} }

// lastRuns leaves out runs that a later run of the same case has replaced. A run replaces all results of the former run: results of address families replace
// the result without a family of a case that could not be tested, and the other way round.
func lastRuns(all []Result) []Result {
	runs := map[testedCase][]Result{}
	var order []testedCase
	for _, r := range inOrder(all) {
		at := r.testedCase()
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

// beginsRun reports whether the result begins a new run. A run has each family at most once.
func beginsRun(run []Result, r Result) bool {
	return slices.ContainsFunc(run, func(other Result) bool {
		return other.Family == r.Family || other.Family == "" || r.Family == "" || other.Date != r.Date || other.Commit != r.Commit
	})
}

// hasPassed reports whether the case has results in the last runs, and none of them is a failure.
func hasPassed(last []Result, at testedCase) bool {
	tested := false
	for _, r := range last {
		if r.testedCase() != at {
			continue
		}
		if r.Outcome == conformance.Failed {
			return false
		}
		tested = true
	}
	return tested
}
