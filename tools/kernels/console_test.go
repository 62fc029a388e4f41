package kernels

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/kernels/guest"
)

// stepsNamed returns steps without programs.
func stepsNamed(names ...string) (steps []guest.Step) {
	for _, name := range names {
		steps = append(steps, guest.Step{Name: name})
	}
	return steps
}

// readConsole returns a console that has read the text, and the ends of its steps.
func readConsole(plan []guest.Step, text string) (*console, []StepResult) {
	c := newConsole(Run{Plan: guest.Plan{Steps: plan}, Console: io.Discard})
	var ended []StepResult
	c.onEnd = func(e StepResult) { ended = append(ended, e) }
	c.read(strings.NewReader(text), func() {})
	return c, ended
}

func TestTheConsoleFindsTheEndsOfStepsInTheOutput(t *testing.T) {
	var out bytes.Buffer
	c := newConsole(Run{Plan: guest.Plan{Steps: stepsNamed("ebpf:tcp-echo")}, Console: &out})
	alive := 0
	c.read(strings.NewReader("kernels: Linux 6.12\r\nhello\r\nkernels: ended ebpf:tcp-echo 3\r\n"+strings.Repeat("more\n", lastLines+10)+"kernels: all steps have ended\n"), func() { alive++ })
	require.Equal(t, map[string]int{"ebpf:tcp-echo": 3}, c.statuses)
	require.True(t, c.ended)
	require.Equal(t, lastLines+14, alive)
	require.Len(t, c.lines, lastLines)
	require.Contains(t, out.String(), "hello\n")
}

func TestTheEndOfAStepIsFoundAnywhereInALine(t *testing.T) {
	c, ended := readConsole(stepsNamed("ebpf:a", "ebpf:a-b"), "no line's endkernels: began ebpf:a\n[    7.1] eth0: upkernels: ended ebpf:a 1[    7.2] eth0: down\n"+
		"kernels: ended ebpf:other 0\nkernels: ended ebpf:a \nkernels: began ebpf:a-b\n.kernels: ended ebpf:a-b 0\nkernels: ended ebpf:a-b 7\nxkernels: all steps have ended")
	require.Equal(t, map[string]int{"ebpf:a": 1, "ebpf:a-b": 0}, c.statuses, "a name may begin with another name, and the first status counts")
	require.Len(t, ended, 2)
	require.True(t, c.ended)
	require.Empty(t, c.missing())
}

func TestAKernelErrorBelongsToTheRunningStep(t *testing.T) {
	_, ended := readConsole(stepsNamed("a", "b", "c", "d"), `[    1.000000] WARNING: CPU: 0 PID: 1 at arch/x86/boot
kernels: began a
WARNING: CPU: 0 is what a program prints
kernels: ended a 0
kernels: began b
[   12.345678] ------------[ cut here ]------------
[   12.345679] WARNING: CPU: 1 PID: 77 at net/core/dev.c:1
[   12.345680] BUG: sleeping function called from invalid context
kernels: ended b 0
kernels: began c
[   13.000000][  T77] BUG: scheduling while atomic
kernels: ended c 0
kernels: began d
kernels: ended d 0 1024
`)
	require.Equal(t, []StepResult{{Step: guest.Step{Name: "a"}}, {Step: guest.Step{Name: "b"}, KernelError: "WARNING: CPU: 1 PID: 77 at net/core/dev.c:1"},
		{Step: guest.Step{Name: "c"}, KernelError: "BUG: scheduling while atomic"}, {Step: guest.Step{Name: "d"}, Sent: 1024}}, ended)
}

func TestACrashNamesTheRunningStep(t *testing.T) {
	c, _ := readConsole(stepsNamed("a", "b"), "kernels: began a\nkernels: ended a 0\nkernels: began b\n[   9.0] BUG: kernel NULL pointer dereference\n[   9.1] Kernel panic - not syncing: Fatal exception\n")
	cause := errors.New("it ended")
	crash := c.crash(cause, "the machine ended by itself")
	require.Equal(t, "b", crash.Step.Name)
	require.Equal(t, "the kernel panicked: Kernel panic - not syncing: Fatal exception\nBUG: kernel NULL pointer dereference", crash.Reason)
	require.ErrorIs(t, crash, cause)
	c, _ = readConsole(stepsNamed("a", "b"), "kernels: began a\nkernels: ended a 0\n")
	require.Empty(t, c.crash(cause, "the machine ended by itself").Step.Name)
}
