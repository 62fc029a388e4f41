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

// Ending is how a step ended.
type Ending struct {
	Step   guest.Step
	Status int
	// Sent is how many bytes of results the guest has sent until then.
	Sent int64
	// Trouble is what the kernel said against itself while the step ran, or how the machine ended then. It is empty if there was none.
	Trouble string
}

// console reads what a machine prints.
type console struct {
	to    io.Writer
	lines []string
	// plan are the steps that there are.
	plan []guest.Step
	// running is the step that runs; without a name if none does. trouble is the first that the kernel said against itself since it began.
	running guest.Step
	trouble string
	// statuses are those of the steps that have ended; ended tells that the guest has come to the end of its plan.
	statuses map[string]int
	ended    bool
	// panicked is the line by which the kernel said that it panicked, broken the guest's reason not to go on.
	panicked, broken string
	// onBegin and onEnd are told of steps.
	onBegin func(guest.Step)
	onEnd   func(Ending)
}

func newConsole(r Run) *console {
	return &console{to: r.Console, plan: r.Steps, statuses: map[string]int{}, onBegin: func(guest.Step) {}, onEnd: func(Ending) {}}
}

// lastLines is how many lines an error tells: a panic's first line, and its trace.
const lastLines = 100

func (c *console) last() string { return strings.Join(c.lines, "\n") }

// read passes lines on until the machine ends.
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
		c.broken = rest
	}
	c.ended = c.ended || strings.Contains(line, guest.AllEnded)
}

// kernelTrouble is a line of the kernel's, with its time, that tells of a defect (kernel source, __warn in kernel/panic.c, and wherever it has "BUG: ").
var kernelTrouble = regexp.MustCompile(`\[ *\d+\.\d+\] ?(?:\[[^\]]*\] ?)?((?:WARNING: CPU: |BUG: |kernel BUG at ).*)`)

const kernelPanic = "Kernel panic - not syncing"

// kernel reads what the kernel says against itself.
func (c *console) kernel(line string) {
	if found := kernelTrouble.FindStringSubmatch(line); found != nil && c.running.Name != "" && c.trouble == "" {
		c.trouble = found[1]
	}
	if at := strings.Index(line, kernelPanic); at >= 0 && c.panicked == "" {
		c.panicked = line[at:]
	}
}

// step returns the step of the plan that the text begins with, and what follows its name.
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
		c.running, c.trouble = s, ""
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
	sent, _ := strconv.ParseInt(status[2], 10, 64) // a line that is cut says nothing of that
	e := Ending{Step: s, Status: n, Sent: sent}
	if c.running.Name == s.Name {
		e.Trouble = c.trouble
	}
	c.running, c.trouble = guest.Step{}, ""
	c.onEnd(e)
}

// missing are the names of the steps that have not ended.
func (c *console) missing() []string {
	var names []string
	for _, s := range c.plan {
		if _, ended := c.statuses[s.Name]; !ended {
			names = append(names, s.Name)
		}
	}
	return names
}

// crash is what an end of the machine is that its plan does not have.
func (c *console) crash(cause error, how string) *Crash {
	crash := &Crash{Step: c.running, Reason: how, cause: cause}
	if c.panicked != "" {
		crash.Reason = "the kernel panicked: " + c.panicked
	}
	if c.trouble != "" {
		crash.Reason += "\n" + c.trouble
	}
	return crash
}

// Crash is the end of a machine before that of its plan, by its kernel or for the kernel's silence.
type Crash struct {
	// Step is the one that ran; without a name if none did.
	Step guest.Step
	// Reason says in short what happened.
	Reason string
	cause  error
}

// Error tells the reason and the console's last lines.
func (c *Crash) Error() string { return c.cause.Error() }

// Unwrap returns what ended the machine.
func (c *Crash) Unwrap() error { return c.cause }
