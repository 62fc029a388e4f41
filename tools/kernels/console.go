package kernels

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"kubelb.k8c.io/tools/kernels/guest"
)

// StepResult describes the end of a step.
type StepResult struct {
	Step   guest.Step
	Status int
	// Sent is the number of bytes of results that the guest had sent until then.
	Sent int64
	// KernelError is a warning or a bug that the kernel reported while the step ran, or the reason for which the machine ended. It is empty if there was none.
	KernelError string
}

// console reads the console of a machine.
type console struct {
	to    io.Writer
	lines []string
	// plan has all steps.
	plan []guest.Step
	// running is the running step; its name is empty if none runs. kernelError is the first error that the kernel reported since the step began.
	running     guest.Step
	kernelError string
	// statuses are the exit statuses of the steps that have ended. ended means that the guest has completed its plan.
	statuses map[string]int
	ended    bool
	// panicked is the kernel's line about a panic, guestError the guest's reason to stop.
	panicked, guestError string
	// onBegin and onEnd are called when a step begins and ends.
	onBegin func(guest.Step)
	onEnd   func(StepResult)
}

func newConsole(r Run) *console {
	return &console{to: r.Console, plan: r.Steps, statuses: map[string]int{}, onBegin: func(guest.Step) {}, onEnd: func(StepResult) {}}
}

// lastLines is the number of console lines in an error, enough for a panic and its trace.
const lastLines = 100

func (c *console) last() string { return strings.Join(c.lines, "\n") }

// read reads lines until the machine ends. It calls alive for each line.
func (c *console) read(from io.Reader, alive func()) {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			alive()
			c.line(strings.TrimRight(line, "\r\n"))
		}
		if err != nil {
			return
		}
	}
}

func (c *console) line(line string) {
	fmt.Fprintln(c.to, line)
	c.lines = append(c.lines, line)
	c.lines = c.lines[max(0, len(c.lines)-lastLines):]
	c.kernel(line)
	if _, rest, ok := strings.Cut(line, guest.StepEnded); ok {
		c.stepEnded(rest)
	}
	if _, rest, ok := strings.Cut(line, guest.StepBegan); ok {
		c.stepBegan(rest)
	}
	if _, rest, ok := strings.Cut(line, guest.Failed); ok {
		c.guestError = rest
	}
	c.ended = c.ended || strings.Contains(line, guest.AllEnded)
}

// kernelErrorLine matches a line of the kernel, with its time, about a defect (kernel source, __warn in kernel/panic.c, and all places with "BUG: ").
var kernelErrorLine = regexp.MustCompile(`\[ *\d+\.\d+\] ?(?:\[[^\]]*\] ?)?((?:WARNING: CPU: |BUG: |kernel BUG at ).*)`)

const kernelPanic = "Kernel panic - not syncing"

// kernel looks for reports of kernel errors in a line.
func (c *console) kernel(line string) {
	if found := kernelErrorLine.FindStringSubmatch(line); found != nil && c.running.Name != "" && c.kernelError == "" {
		c.kernelError = found[1]
	}
	if at := strings.Index(line, kernelPanic); at >= 0 && c.panicked == "" {
		c.panicked = line[at:]
	}
}

// step returns the step of the plan with whose name the text begins, and the text after the name.
func (c *console) step(text string) (step guest.Step, rest string, ok bool) {
	for _, s := range c.plan {
		if after, is := strings.CutPrefix(text, s.Name); is && (!ok || len(s.Name) > len(step.Name)) {
			step, rest, ok = s, after, true
		}
	}
	return step, rest, ok
}

func (c *console) stepBegan(text string) {
	if s, _, ok := c.step(text); ok {
		c.running, c.kernelError = s, ""
		c.onBegin(s)
	}
}

var exitStatus = regexp.MustCompile(`^ (-?\d+)(?: (\d+))?`)

func (c *console) stepEnded(text string) {
	s, rest, ok := c.step(text)
	status := exitStatus.FindStringSubmatch(rest)
	if _, known := c.statuses[s.Name]; !ok || status == nil || known {
		return
	}
	n, err := strconv.Atoi(status[1])
	if err != nil {
		return
	}
	c.statuses[s.Name] = n
	sent, _ := strconv.ParseInt(status[2], 10, 64) // a truncated line does not have the number
	e := StepResult{Step: s, Status: n, Sent: sent}
	if c.running.Name == s.Name {
		e.KernelError = c.kernelError
	}
	c.running, c.kernelError = guest.Step{}, ""
	c.onEnd(e)
}

// missing returns the names of the steps that have not ended.
func (c *console) missing() []string {
	var names []string
	for _, s := range c.plan {
		if _, ended := c.statuses[s.Name]; !ended {
			names = append(names, s.Name)
		}
	}
	return names
}

// crash returns a Crash for a machine that ended before its plan.
func (c *console) crash(cause error, reason string) *Crash {
	crash := &Crash{Step: c.running, Reason: reason, cause: cause}
	if c.panicked != "" {
		crash.Reason = "the kernel panicked: " + c.panicked
	}
	if c.kernelError != "" {
		crash.Reason += "\n" + c.kernelError
	}
	return crash
}

// Crash is the error of a machine that ended before its plan, because of its kernel, or because the kernel was silent.
type Crash struct {
	// Step is the running step; its name is empty if none ran.
	Step guest.Step
	// Reason describes in short what happened.
	Reason string
	cause  error
}

// Error returns the reason and the last lines of the console.
func (c *Crash) Error() string { return c.cause.Error() }

// Unwrap returns the cause of the end of the machine.
func (c *Crash) Unwrap() error { return c.cause }
