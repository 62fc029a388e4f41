package drill

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Fleet says in a few words which gateways there are.
func (o Options) Fleet() string {
	announce := o.Announce
	if announce == Layer2 {
		announce = "layer 2"
	}
	return announce + ", " + o.Backend + ", " + o.Forwarding
}

// Table says the median and the worst of each failure, in Markdown. By BGP many gateways answer for an address, and nothing is said of that.
func (o Options) Table(all []Result) string {
	var out strings.Builder
	columns := []string{o.Fleet(), "rounds", "longest gap", "requests failed", "slow", "connections kept of those there were"}
	if o.Announce == Layer2 {
		columns = append(columns, "two answers for one address")
	}
	row(&out, columns)
	row(&out, slices.Repeat([]string{"---"}, len(columns)))
	for _, name := range o.Names() {
		of := slices.DeleteFunc(slices.Clone(all), func(r Result) bool { return r.Failure != name })
		if len(of) == 0 {
			continue
		}
		kept, there, twice := 0, 0, time.Duration(0)
		for _, r := range of {
			kept, there, twice = kept+r.Kept, there+r.Kept+r.Lost, max(twice, r.Twice)
		}
		cells := []string{name, fmt.Sprint(len(of)),
			spread(of, " ms", func(r Result) int { return int(r.Gap.Milliseconds()) }),
			spread(of, "", func(r Result) int { return r.Failed }),
			spread(of, "", func(r Result) int { return r.Slow }),
			fmt.Sprintf("%d of %d", kept, there), fmt.Sprintf("%d ms at most", twice.Milliseconds())}
		row(&out, cells[:len(columns)])
	}
	return out.String()
}

func row(out *strings.Builder, cells []string) {
	fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
}

// spread is the median and the worst, of one round what it is.
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
