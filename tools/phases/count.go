package phases

import (
	"fmt"
	"regexp"
	"strings"
)

// Counts are what a phase printed of its tests.
type Counts struct {
	// Tests are Go tests that passed, of phases that name them; Packages are those of the others; Cases are runs of conformance cases.
	Tests, Packages, Cases int
	Failures               []Failure
}

// Failure is a test that failed, and the command that runs it alone.
type Failure struct{ What, Command string }

// Passed says how many passed.
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

// counter reads the lines of a phase.
type counter struct {
	phase  Phase
	counts Counts
	// nameless are the failed tests of the package that go test has not named yet.
	nameless []string
}

var (
	goTest    = regexp.MustCompile(`^(?:([a-z-]+): )?--- (PASS|FAIL): (Test\w+)`)
	goPackage = regexp.MustCompile(`^(ok  |FAIL)\t(\S+)\t`)
	caseRun   = regexp.MustCompile(`^([a-z-]+): (passed|failed)\s+(\S+)\s+IPv[46]\b`)
)

// module is what the paths of all packages begin with.
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
		c.nameless = append(c.nameless, name)
	}
}

// pkg is the end of a package: go test names it behind its failed tests.
func (c *counter) pkg(dir string, passed bool) {
	if passed {
		c.counts.Packages++
	}
	for _, name := range c.nameless {
		c.fail(dir+" "+name, fmt.Sprintf("cd %s && GOWORK=off go test -count=1 -run='^%s$' .", dir, name))
	}
	c.nameless = nil
}

// fail notes a failure once: a case runs for each address family.
func (c *counter) fail(what, command string) {
	for _, f := range c.counts.Failures {
		if f.What == what {
			return
		}
	}
	c.counts.Failures = append(c.counts.Failures, Failure{what, command})
}

// end returns the counts. Tests of a program that names no package are run by their phase.
func (c *counter) end() Counts {
	for _, name := range c.nameless {
		c.fail(name, "make "+strings.Join(c.phase, " "))
	}
	c.nameless = nil
	return c.counts
}
