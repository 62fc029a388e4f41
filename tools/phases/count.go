package phases

import (
	"fmt"
	"regexp"
	"strings"
)

// Counts are the results of tests that a phase printed.
type Counts struct {
	// Tests is the number of passed Go tests in phases that print their names, Packages the number of passed packages in other phases, and Cases the number of passed
	// runs of conformance cases.
	Tests, Packages, Cases int
	Failures               []Failure
}

// Failure is a failed test, and the command that runs it alone.
type Failure struct{ What, Command string }

// Passed returns the numbers of what passed.
func (c Counts) Passed() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{c.Tests, "tests"}, {c.Packages, "packages"}, {c.Cases, "runs of cases"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprint(p.n, " ", p.what))
		}
	}
	return strings.Join(parts, ", ")
}

// counter reads the output of a phase.
type counter struct {
	phase  Phase
	counts Counts
	// pending are failed tests whose package go test has not named yet.
	pending []string
}

var (
	goTest    = regexp.MustCompile(`^(?:([a-z-]+): )?--- (PASS|FAIL): (Test\w+)`)
	goPackage = regexp.MustCompile(`^(ok  |FAIL)\t(\S+)\t`)
	caseRun   = regexp.MustCompile(`^([a-z-]+): (passed|failed)\s+(\S+)\s+IPv[46]\b`)
)

// module is the prefix of all package paths.
const module = "kubelb.k8c.io/"

func (c *counter) read(line string) {
	if m := caseRun.FindStringSubmatch(line); m != nil {
		if m[2] == "passed" {
			c.counts.Cases++
			return
		}
		c.fail(m[1]+" "+m[3], "make judge-"+m[1]+" CASE="+m[3])
	} else if m := goTest.FindStringSubmatch(line); m != nil {
		c.test(m[1], m[3], m[2] == "PASS")
	} else if m := goPackage.FindStringSubmatch(line); m != nil {
		c.pkg(strings.TrimPrefix(m[2], module), m[1] != "FAIL")
	}
}

func (c *counter) test(backend, name string, passed bool) {
	switch {
	case passed:
		c.counts.Tests++
	case backend != "":
		c.fail(backend+" "+name, fmt.Sprintf("make %s BACKEND=%s RUN='^%s$$'", c.phase.Name(), backend, name))
	default:
		c.pending = append(c.pending, name)
	}
}

// pkg ends a package, which go test names after its failed tests.
func (c *counter) pkg(dir string, passed bool) {
	if passed {
		c.counts.Packages++
	}
	for _, name := range c.pending {
		c.fail(dir+" "+name, fmt.Sprintf("cd %s && GOWORK=off go test -count=1 -run='^%s$' .", dir, name))
	}
	c.pending = nil
}

// fail records a failure once, because a case runs for each address family.
func (c *counter) fail(what, command string) {
	for _, f := range c.counts.Failures {
		if f.What == what {
			return
		}
	}
	c.counts.Failures = append(c.counts.Failures, Failure{what, command})
}

// end returns the counts. A failed test without a package is run by its phase.
func (c *counter) end() Counts {
	for _, name := range c.pending {
		c.fail(name, "make "+strings.Join(c.phase, " "))
	}
	c.pending = nil
	return c.counts
}
