package kernels

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"kubelb.k8c.io/tools/kernels/guest"
)

// machine is how QEMU emulates an architecture.
type machine struct {
	binary, console string
	args            []string
}

// machines by architecture. Pointer authentication costs half of arm64's time where its usual algorithm is emulated. cmpxchg16b, with which the kernel
// allocates memory if it may, left other flags than those of its outcome once in some hours (QEMU 7.2), and the kernel panicked by that.
var machines = map[string]machine{
	"amd64": {"qemu-system-x86_64", "ttyS0", []string{"-cpu", "max,-cx16", "-vga", "none"}},
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
	// Ended, if set, is told of each step when it has ended and what it left is in ResultsDir.
	Ended func(Ending)
	// Console gets what the kernel and the steps print.
	Console io.Writer
	// Silence is for how long the console may print nothing.
	Silence time.Duration
	// HungAfter is how much later than at its limit a step has to have ended, since the guest needs time to end it; without it two minutes.
	HungAfter time.Duration
}

// Boot boots the kernel and carries out the plan. It returns the exit status of each step that has ended. An error means that the kernel did not come to
// the end of its plan, and tells its last lines: Crash if that was the kernel's doing.
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
	watch := newConsole(r)
	watch.onEnd = func(e Ending) {
		awaitSize(results, e.Sent)
		if err := extract(results, r.ResultsDir); err != nil {
			fmt.Fprintln(r.Console, "kernels:", err) // the last try says whether it stays so
		}
		if r.Ended != nil {
			r.Ended(e)
		}
	}
	err = k.emulate(ctx, initramfs, results, r, watch)
	return watch.statuses, errors.Join(k.judgeEnd(err, watch, r.Silence), extract(results, r.ResultsDir))
}

// resultsPatience is for how long results may be behind the console.
const resultsPatience = 30 * time.Second

// awaitSize waits until the file has the size. If it does not get it, reading says what is missing.
func awaitSize(path string, size int64) {
	for end := time.Now().Add(resultsPatience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if info, err := os.Stat(path); size == 0 || err == nil && info.Size() >= size {
			return
		}
	}
}

var (
	// errEarly is the end of a machine that ends by itself.
	errEarly = errors.New("it ended before its plan did")
	// errSilent ends a machine that prints nothing.
	errSilent = errors.New("silent for too long")
	// errHung ends a machine that cannot end a step.
	errHung = errors.New("a step did not end, though its limit is over")
)

// judgeEnd says what was wrong with the end of a machine.
func (k Kernel) judgeEnd(err error, watch *console, silence time.Duration) error {
	missing := watch.missing()
	switch {
	case err == nil && watch.ended && len(missing) == 0:
		return nil
	case err == nil && watch.ended:
		err = fmt.Errorf("its plan ended, but not so on the console: %s", strings.Join(missing, ", "))
	case err == nil && watch.broken != "":
		err = fmt.Errorf("the guest could not go on: %s", watch.broken)
	case err == nil:
		err = errEarly
	}
	err = fmt.Errorf("kernel %s (%s): %w\nits last lines:\n%s", k.Spec, k.Release, err, watch.last())
	switch {
	case errors.Is(err, errEarly):
		return watch.crash(err, "the machine ended by itself")
	case errors.Is(err, errSilent):
		return watch.crash(err, fmt.Sprintf("the machine was silent for %s", silence))
	case errors.Is(err, errHung):
		return watch.crash(err, "the machine hung: its guest did not end the step at its limit")
	}
	return err
}

// emulate runs QEMU until the machine turns itself off.
func (k Kernel) emulate(ctx context.Context, initramfs, results string, r Run, watch *console) error {
	m := machines[k.Arch]
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(ctx, m.binary, append(m.argsFor(k.image, initramfs, results), m.args...)...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	silent := time.AfterFunc(r.Silence, func() { stop(fmt.Errorf("%w (%s)", errSilent, r.Silence)) })
	hungAfter := cmp.Or(r.HungAfter, 2*time.Minute)
	hung := time.AfterFunc(hungAfter, func() { stop(errHung) })
	hung.Stop() // until a step begins
	watch.onBegin = func(s guest.Step) {
		hung.Stop()
		if s.Limit > 0 {
			hung.Reset(s.Limit + hungAfter)
		}
	}
	watch.read(out, func() { silent.Reset(r.Silence) })
	silent.Stop()
	hung.Stop()
	err = cmd.Wait()
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%s: %w: %s", m.binary, err, problem.String())
	}
	return nil
}

// argsFor are the arguments that any architecture needs. One thread emulates both processors, which costs a seventh of the time: with a thread for each
// (QEMU 7.2) kernels panicked now and then at breakpoints that they had put into their own code while the other processor ran it (text_poke). The
// kernel prints warnings, and not only errors, since a warning is held against a step.
func (m machine) argsFor(image, initramfs, results string) []string {
	return []string{
		"-accel", "tcg,thread=single", "-smp", "2", "-m", "4096", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "file,id=results,path=" + results, "-device", "virtserialport,chardev=results",
		"-kernel", image, "-initrd", initramfs, "-append", "console=" + m.console + " loglevel=5 printk.time=1 panic=-1 oops=panic",
	}
}
