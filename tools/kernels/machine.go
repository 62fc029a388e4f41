package kernels

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"kubelb.k8c.io/tools/kernels/guest"
)

// machine is how QEMU emulates an architecture.
type machine struct {
	binary, console string
	args            []string
}

// machines by architecture. Pointer authentication costs half of arm64's time where its usual algorithm is emulated.
var machines = map[string]machine{
	"amd64": {"qemu-system-x86_64", "ttyS0", []string{"-cpu", "max", "-vga", "none"}},
	"arm64": {"qemu-system-aarch64", "ttyAMA0", []string{"-machine", "virt", "-cpu", "max,pauth-impdef=on"}},
}

// Run is what to run in a kernel.
type Run struct {
	guest.Plan
	// Files are put into the guest, by their paths there.
	Files map[string]string
	// Userland is a directory whose programs and libraries are put into the guest as well (Cache.Userland).
	Userland string
	// Init is the program of package guest for the kernel's architecture.
	Init string
	// ResultsDir gets what the steps that have ended left in guest.ResultsDir.
	ResultsDir string
	// Console gets what the kernel and the steps print.
	Console io.Writer
	// Silence is for how long the console may print nothing.
	Silence time.Duration
}

// Boot boots the kernel and carries out the plan. It returns the exit status of each step. An error means that the kernel did not come to the end of its
// plan, and tells its last lines.
func (k Kernel) Boot(ctx context.Context, r Run) (map[string]int, error) {
	work, err := os.MkdirTemp("", "klkernel")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	initramfs, results := filepath.Join(work, "initramfs"), filepath.Join(work, "results.tar")
	if err := k.writeInitramfs(initramfs, r); err != nil {
		return nil, err
	}
	watch := &console{to: r.Console, steps: map[string]int{}}
	if err := k.emulate(ctx, initramfs, results, r.Silence, watch); err != nil {
		err = fmt.Errorf("kernel %s (%s): %w\nits last lines:\n%s", k.Spec, k.Release, err, watch.last())
		return watch.steps, errors.Join(err, extract(results, r.ResultsDir))
	}
	return watch.steps, extract(results, r.ResultsDir)
}

// errSilent ends a machine that prints nothing.
var errSilent = errors.New("silent for too long")

// emulate runs QEMU until the machine turns itself off.
func (k Kernel) emulate(ctx context.Context, initramfs, results string, silence time.Duration, watch *console) error {
	m := machines[k.Arch]
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	args := append([]string{
		"-accel", "tcg,thread=multi", "-smp", "2", "-m", "4096", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "file,id=results,path=" + results, "-device", "virtserialport,chardev=results",
		"-kernel", k.image, "-initrd", initramfs, "-append", "console=" + m.console + " quiet panic=-1 oops=panic",
	}, m.args...)
	cmd := exec.CommandContext(ctx, m.binary, args...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	watchdog := time.AfterFunc(silence, func() { stop(fmt.Errorf("%w (%s)", errSilent, silence)) })
	watch.read(out, func() { watchdog.Reset(silence) })
	watchdog.Stop()
	err = cmd.Wait()
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%s: %w: %s", m.binary, err, problem.String())
	case !watch.ended:
		return errors.New("it ended before its plan did")
	}
	return nil
}

// console reads what a machine prints.
type console struct {
	to    io.Writer
	lines []string
	// steps are the exit statuses of the steps that have ended; ended tells that all have.
	steps map[string]int
	ended bool
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
	if rest, ok := strings.CutPrefix(line, guest.StepEnded); ok {
		name, status, _ := strings.Cut(rest, " ")
		if n, err := strconv.Atoi(status); err == nil {
			c.steps[name] = n
		}
	}
	c.ended = c.ended || line == guest.AllEnded
}
