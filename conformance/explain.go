package conformance

import (
	"fmt"
	"strings"

	"kubelb.k8c.io/conformance/cases"
)

// reason sums up the failures of a run: what the first one expected and saw, and how many others there are.
func reason(failures []cases.Failure) string {
	expected, seen := lines(failures[0])
	text := "expected: " + expected + "\nseen: " + seen
	if more := len(failures) - 1; more > 0 {
		text += fmt.Sprintf("\nand %d more", more)
	}
	return text
}

// lines returns what a failure expected and saw. What is expected begins with the place.
func lines(f cases.Failure) (expected, seen string) {
	expected = f.Expected
	if expected == "" {
		expected = "what the case shows"
	}
	if where := f.Where(); where != "" {
		expected += " (" + where + ")"
	}
	return expected, f.Seen
}

// Explanation says in three lines what a failed run expected, what it saw, and how it runs alone. If a process of the backend ended by itself,
// all that it wrote follows. With details, all messages with their stacks follow.
func (r Run) Explanation(details bool) string {
	var b strings.Builder
	if len(r.Failures) > 0 {
		expected, seen := lines(r.Failures[0])
		fmt.Fprintf(&b, "  expected: %s\n  seen:     %s", expected, seen)
		if more := len(r.Failures) - 1; more > 0 {
			fmt.Fprintf(&b, " (and %d more)", more)
		}
	}
	if r.Command != "" {
		fmt.Fprintf(&b, "\n  alone:    %s", r.Command)
	}
	for _, d := range r.Deaths {
		fmt.Fprintf(&b, "\n%s", d)
	}
	if !details {
		return b.String()
	}
	for i, f := range r.Failures {
		fmt.Fprintf(&b, "\nfailure %d of %d: %s", i+1, len(r.Failures), f.Details)
		if f.Details == "" {
			fmt.Fprintf(&b, "expected: %s; seen: %s", f.Expected, f.Seen)
		}
	}
	return b.String()
}
