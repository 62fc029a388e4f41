package cases

import (
	"regexp"
	"strings"
)

// Failure is a check that failed.
type Failure struct {
	// Expected and Seen are one line each. Expected may be empty: then it is the sentence that the case shows.
	Expected, Seen string
	// At is the line of the case, and During what the case did. Both may be empty.
	At, During string
	// Details is the whole message, with the stack.
	Details string
}

// Where returns the position and what the case did, as one text.
func (f Failure) Where() string {
	return strings.Join(nonEmpty(f.At, f.During), ", ")
}

func nonEmpty(texts ...string) []string {
	var out []string
	for _, t := range texts {
		if t != "" {
			out = append(out, t)
		}
	}
	return out
}

// sourcePath matches the absolute path of a source position. The group is the part that stays.
var sourcePath = regexp.MustCompile(`(?:/[^\s/:]+)+/([^\s/:]+\.(?:go|s):\d+)`)

// failureFrom reads the message of a failed assertion. It removes directories from source positions, so that a report does not
// show where the suite was built.
func failureFrom(message string) Failure {
	message = sourcePath.ReplaceAllString(strings.TrimSpace(message), "$1")
	parts := labels(message)
	if parts["Error"] == "" {
		return Failure{Seen: oneLine(message), Details: message}
	}
	f := Failure{At: caseLine(parts["Error Trace"]), Details: message}
	f.Expected, f.Seen = expectation(parts["Error"])
	switch words := oneLine(parts["Messages"]); {
	case words == "":
	case f.Expected == "": // a condition, which only its message explains
		f.Seen = words
	default:
		f.Expected += ": " + words
	}
	return f
}

// label matches the first line of a part of an assertion's message, continued the following ones.
var (
	label     = regexp.MustCompile(`^\s*(Error Trace|Error|Messages):\s*(.*)$`)
	continued = regexp.MustCompile(`^\s*\t`)
)

// labels splits the message of an assertion into its parts.
func labels(message string) map[string]string {
	parts, at := map[string]string{}, ""
	for line := range strings.Lines(message) {
		line = strings.TrimRight(line, "\n")
		if m := label.FindStringSubmatch(line); m != nil && parts[m[1]] == "" {
			at = m[1]
			parts[at] = m[2]
		} else if at != "" {
			parts[at] += "\n" + continued.ReplaceAllString(line, "")
		}
	}
	return parts
}

// caseLine returns the outermost line of the stack that belongs to the case. Below it is only the suite's own code.
func caseLine(stack string) string {
	lines := strings.Fields(stack)
	for i := len(lines) - 1; i >= 0; i-- {
		file, _, _ := strings.Cut(lines[i], ":")
		if file != "run.go" && !strings.HasSuffix(file, ".s") {
			return lines[i]
		}
	}
	return ""
}

// assertions match the messages of assertions. The template gives what was expected, and what was seen.
var assertions = []struct {
	message        *regexp.Regexp
	expected, seen string
}{
	{regexp.MustCompile(`(?s)^Not equal: \s*expected: (.*?)\n\s*actual *: (.*?)(?:\n\s*Diff:.*)?$`), "$1", "$2"},
	{regexp.MustCompile(`(?s)^Received unexpected error:\s*(.*)$`), "no error", "$1"},
	{regexp.MustCompile(`^An error is expected but got nil\.$`), "an error", "none"},
	{regexp.MustCompile(`(?s)^Should be empty, but was (.*)$`), "nothing", "$1"},
	{regexp.MustCompile(`(?s)^Should NOT be empty, but was (.*)$`), "something", "$1"},
	{regexp.MustCompile(`(?s)^Should be zero, but was (.*)$`), "zero", "$1"},
	{regexp.MustCompile(`(?s)^"(.*)" should have (\d+) item\(s\), but has (\d+)$`), "$2 items", "$3: $1"},
	{regexp.MustCompile(`(?s)^"(.*)" is not (less than(?: or equal to)?|greater than(?: or equal to)?) "(.*)"$`), "$2 $3", "$1"},
	{regexp.MustCompile(`(?s)^"(.*)" is not (positive|negative)$`), "a $2 number", "$1"},
	{regexp.MustCompile(`(?s)^Should be (?:true|false)$`), "", "it is not so"},
}

// expectation returns what was expected, or nothing if the message does not say it, and what was seen.
func expectation(message string) (expected, seen string) {
	message = strings.TrimSpace(message)
	for _, a := range assertions {
		if m := a.message.FindStringSubmatchIndex(message); m != nil {
			expand := func(template string) string {
				return oneLine(string(a.message.ExpandString(nil, template, message, m)))
			}
			return expand(a.expected), expand(a.seen)
		}
	}
	return "", oneLine(message)
}

// longest is the greatest length of a line of a failure.
const longest = 600

// oneLine joins the lines of a text, and shortens it.
func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	text = strings.Join(lines, "; ")
	if runes := []rune(text); len(runes) > longest {
		return string(runes[:longest]) + " …"
	}
	return text
}
