package bench

import (
	"fmt"
	"html"
	"io"
	"math"
	"slices"
)

// Bar is a bar of a plot: the median of all rounds, with the smallest and the largest value.
type Bar struct {
	Label              string
	Least, Median, Max float64
}

// NewBar returns a bar for the values of all rounds.
func NewBar(label string, values []float64) Bar {
	return Bar{Label: label, Least: slices.Min(values), Median: Median(values), Max: slices.Max(values)}
}

// Plot writes groups of bars as an SVG image, with a line at the value 1.
func Plot(out io.Writer, title string, groups []string, bars map[string][]Bar) error {
	const left, width, line, right = 360, 420, 18, 90
	most, lines := 1.0, 2
	for _, g := range groups {
		lines += len(bars[g]) + 2
		for _, b := range bars[g] {
			most = max(most, b.Max)
		}
	}
	most = math.Ceil(most*4) / 4
	x := func(v float64) float64 { return left + v/most*width }
	var failed error
	write := func(format string, a ...any) {
		if failed == nil {
			_, failed = fmt.Fprintf(out, format+"\n", a...)
		}
	}
	height := lines*line + line
	write(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`, left+width+right, height)
	write(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	write(`<text x="10" y="%d" font-size="14" font-weight="bold">%s</text>`, line, html.EscapeString(title))
	y := 2 * line
	for _, g := range groups {
		y += line
		write(`<text x="10" y="%d" font-weight="bold">%s</text>`, y, html.EscapeString(g))
		for _, b := range bars[g] {
			y += line
			write(`<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y, html.EscapeString(b.Label))
			write(`<rect x="%d" y="%d" width="%.1f" height="12" fill="#4a7ebb"/>`, left, y-10, x(b.Median)-left)
			write(`<path d="M%.1f %d H%.1f" stroke="#000"/>`, x(b.Least), y-4, x(b.Max))
			write(`<text x="%.1f" y="%d">%.2f</text>`, x(max(b.Max, b.Median))+6, y, b.Median)
		}
		y += line
	}
	write(`<path d="M%.1f %d V%d" stroke="#c00" stroke-dasharray="4 3"/>`, x(1), 2*line, y)
	write(`</svg>`)
	return failed
}
