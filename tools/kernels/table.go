package kernels

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kubelb.k8c.io/conformance"
)

// Table returns a Markdown table of the results of dataplanes on kernels: the last run of each case, on the newest release on which a dataplane was tested.
func Table(all []Result, backends []string) string {
	last := newest(all)
	kernels := map[string]Result{}
	for _, r := range last {
		if kernels[r.Kernel].Date <= r.Date {
			kernels[r.Kernel] = r
		}
	}
	var out strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | ")) }
	row(append([]string{"kernel", "release", "day"}, backends...)...)
	row(slices.Repeat([]string{"---"}, len(backends)+3)...)
	for _, kernel := range slices.SortedFunc(maps.Keys(kernels), compareSeries) {
		cells := []string{kernel, kernels[kernel].Release, kernels[kernel].Date}
		for _, backend := range backends {
			counts, release := map[conformance.Outcome]int{}, kernels[kernel].Release
			for _, r := range last {
				if r.Kernel == kernel && r.Backend == backend {
					counts[r.Outcome]++
					release = r.Release
				}
			}
			text := cell(counts)
			if release != kernels[kernel].Release {
				text += " (" + release + ")"
			}
			cells = append(cells, text)
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
