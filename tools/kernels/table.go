package kernels

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kubelb.k8c.io/conformance"
)

// Table says in Markdown what came of judging dataplanes on kernels: of each case in a family the last result.
func Table(all []Result, backends []string) string {
	type run struct{ kernel, backend, name, family string }
	last := map[run]Result{}
	releases := map[string]Result{}
	for _, r := range all {
		last[run{r.Kernel, r.Backend, r.Case, r.Family}] = r
		if releases[r.Kernel].Date <= r.Date {
			releases[r.Kernel] = r
		}
	}
	var out strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | ")) }
	row(append([]string{"kernel", "release", "day"}, backends...)...)
	row(slices.Repeat([]string{"---"}, len(backends)+3)...)
	for _, kernel := range slices.SortedFunc(maps.Keys(releases), compareSeries) {
		cells := []string{kernel, releases[kernel].Release, releases[kernel].Date}
		for _, backend := range backends {
			counts := map[conformance.Outcome]int{}
			for at, r := range last {
				if at.kernel == kernel && at.backend == backend {
					counts[r.Outcome]++
				}
			}
			cells = append(cells, cell(counts))
		}
		row(cells...)
	}
	return out.String()
}

func cell(counts map[conformance.Outcome]int) string {
	if len(counts) == 0 {
		return "not run"
	}
	text := fmt.Sprintf("%d passed", counts[conformance.Passed])
	for _, o := range []conformance.Outcome{conformance.Failed, conformance.Unsupported} {
		if counts[o] > 0 {
			text += fmt.Sprintf(", %d %s", counts[o], o)
		}
	}
	return text
}

// compareSeries orders 6.1/amd64 before 6.12/amd64, and kernels of one series by their architectures.
func compareSeries(a, b string) int {
	var majorA, minorA, majorB, minorB int
	_, _ = fmt.Sscanf(a, "%d.%d", &majorA, &minorA)
	_, _ = fmt.Sscanf(b, "%d.%d", &majorB, &minorB)
	return cmp.Or(cmp.Compare(majorA, majorB), cmp.Compare(minorA, minorB), cmp.Compare(a, b))
}
