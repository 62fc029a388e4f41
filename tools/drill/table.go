package drill

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Fleet describes the gateways in a few words.
func (o Options) Fleet() string {
	announce := o.Announce
	if announce == Layer2 {
		announce = "layer 2"
	}
	return announce + ", " + o.Backend + ", " + o.Forwarding
}

// Table returns a Markdown table with the median and the worst value of each failure. With BGP it has no column for double answers, because
// all gateways have all addresses.
func (o Options) Table(all []Result) string {
	var out strings.Builder
	columns := []string{o.Fleet(), "rounds", "longest gap", "requests failed", "slow", "connections kept of those there were"}
	if o.Announce == Layer2 {
		columns = append(columns, "two answers for one address")
	}
	row(&out, columns)
	row(&out, slices.Repeat([]string{"---"}, len(columns)))
	for _, name := range o.Names() {
		results := slices.DeleteFunc(slices.Clone(all), func(r Result) bool { return r.Failure != name })
		if len(results) == 0 {
			continue
		}
		kept, total, doubleAnswer := 0, 0, time.Duration(0)
		for _, r := range results {
			kept, total, doubleAnswer = kept+r.Kept, total+r.Kept+r.Lost, max(doubleAnswer, r.DoubleAnswer)
		}
		cells := []string{name, fmt.Sprint(len(results)),
			spread(results, " ms", func(r Result) int { return int(r.Gap.Milliseconds()) }),
			spread(results, "", func(r Result) int { return r.Failed }),
			spread(results, "", func(r Result) int { return r.Slow }),
			fmt.Sprintf("%d of %d", kept, total), fmt.Sprintf("%d ms at most", doubleAnswer.Milliseconds())}
		row(&out, cells[:len(columns)])
	}
	return out.String()
}

func row(out *strings.Builder, cells []string) {
	fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
}

// spread returns the median and the worst value, or the only value.
func spread(all []Result, unit string, of func(Result) int) string {
	values := make([]int, len(all))
	for i, r := range all {
		values[i] = of(r)
	}
	slices.SortFunc(values, cmp.Compare)
	if len(values) == 1 {
		return fmt.Sprintf("%d%s", values[0], unit)
	}
	return fmt.Sprintf("%d%s, at worst %d%s", values[len(values)/2], unit, values[len(values)-1], unit)
}
