package conformance

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/cases"
)

// YAML writes the report as YAML.
func (r Report) YAML() ([]byte, error) {
	text, err := yaml.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write the report: %w", err)
	}
	return text, nil
}

// formerVersion is the version of reports that do not say how the backend was judged.
const formerVersion = "v1"

// ReadReport reads a report that Report.YAML wrote, also one of the former version.
func ReadReport(text []byte) (Report, error) {
	var r Report
	if err := yaml.UnmarshalStrict(text, &r); err != nil {
		return r, fmt.Errorf("read a report: %w", err)
	}
	if r.Version != ReportVersion && r.Version != formerVersion {
		return r, fmt.Errorf("the report has version %q, but this program reads versions %s and %s", r.Version, formerVersion, ReportVersion)
	}
	return r, nil
}

type junitSuite struct {
	XMLName    xml.Name        `xml:"testsuite"`
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Properties []junitProperty `xml:"properties>property"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Seconds string        `xml:"time,attr"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Skipped *junitMessage `xml:"skipped,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes the report as JUnit XML, which CI servers read. Unsupported cases count as skipped.
func (r Report) JUnit(out io.Writer) error {
	suite := junitSuite{Name: "conformance." + r.Backend.Name, Tests: len(r.Runs), Failures: r.Counts[Failed], Skipped: r.Counts[Unsupported]}
	property := func(name, value string) {
		if value != "" {
			suite.Properties = append(suite.Properties, junitProperty{name, value})
		}
	}
	property("suite", r.Suite.Version)
	property("kernel", r.Kernel)
	property("began", r.Began)
	if p := r.Judgement.Program; p != nil {
		property("plugin", p.Path)
		property("sha256", p.SHA256)
	}
	property("partial", r.Partial)
	for _, run := range r.Runs {
		took, _ := time.ParseDuration(run.Duration)
		c := junitCase{Class: run.Case, Name: run.Family, Seconds: fmt.Sprintf("%.2f", took.Seconds())}
		switch run.Outcome {
		case Failed:
			c.Failure = &junitMessage{run.Shows, run.Explanation(true) + "\n" + run.Log}
		case Unsupported:
			c.Skipped = &junitMessage{Message: run.Reason}
		}
		suite.Cases = append(suite.Cases, c)
	}
	if _, err := io.WriteString(out, xml.Header); err != nil {
		return err
	}
	encoder := xml.NewEncoder(out)
	encoder.Indent("", "  ")
	return encoder.Encode(suite)
}

// outcomeOf sums up the matching runs: failed if one failed, unsupported if one is unsupported, passed if all passed, and
// empty if no run matches.
func (r Report) outcomeOf(match func(Run) bool) Outcome {
	var sum Outcome
	for _, run := range r.Runs {
		if !match(run) {
			continue
		}
		switch {
		case run.Outcome == Failed:
			return Failed
		case run.Outcome == Unsupported || sum == "":
			sum = run.Outcome
		}
	}
	return sum
}

// Matrix returns a Markdown table of what each backend supports: the core, and each feature that a case needs.
func Matrix(reports []Report) string {
	var features []dataplane.Feature
	for _, c := range cases.All() {
		for _, need := range c.Needs {
			if !slices.Contains(features, need) {
				features = append(features, need)
			}
		}
	}
	var b strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	head, line := []string{""}, []string{"---"}
	for _, r := range reports {
		head, line = append(head, r.Backend.Name), append(line, "---")
	}
	row(head...)
	row(line...)
	core := []string{"core"}
	for _, r := range reports {
		core = append(core, cell(r, func(run Run) bool { return run.Profile == cases.Core }))
	}
	row(core...)
	for _, f := range features {
		cells := []string{string(f)}
		for _, r := range reports {
			cells = append(cells, featureCell(r, f))
		}
		row(cells...)
	}
	return b.String()
}

// featureCell counts the runs that need the feature, without those that also need a feature that the backend lacks.
func featureCell(r Report, f dataplane.Feature) string {
	declared := func(need dataplane.Feature) bool { return slices.Contains(r.Backend.Features, need) }
	if !declared(f) {
		return "no"
	}
	return cell(r, func(run Run) bool {
		return slices.Contains(run.Needs, f) && !slices.ContainsFunc(run.Needs, func(need dataplane.Feature) bool { return !declared(need) })
	})
}

func cell(r Report, match func(Run) bool) string {
	runs := 0
	for _, run := range r.Runs {
		if match(run) {
			runs++
		}
	}
	switch r.outcomeOf(match) {
	case Passed:
		return fmt.Sprintf("yes (%d)", runs)
	case Failed:
		return "**fails**"
	case Unsupported:
		return "no"
	}
	return "not tested"
}
