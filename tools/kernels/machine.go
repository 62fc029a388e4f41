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

// machine has the arguments of QEMU for an architecture.
type machine struct {
	binary, console string
	args            []string
}

// machines has the machine of each architecture. On arm64, emulating the usual algorithm of pointer authentication would cost half of the time. On amd64, the
// kernel must not use cmpxchg16b to allocate memory, because every few hours that instruction set wrong flags (QEMU 7.2), and the kernel panicked.
var machines = map[string]machine{
	"amd64": {"qemu-system-x86_64", "ttyS0", []string{"-cpu", "max,-cx16", "-vga", "none"}},
	"arm64": {"qemu-system-aarch64", "ttyAMA0", []string{"-machine", "virt", "-cpu", "max,pauth-impdef=on"}},
}

// Run says what to run on a kernel.
type Run struct {
	guest.Plan
	// Files are copied into the guest, by their paths in the guest.
	Files map[string]string
	// Userland is a directory whose programs and libraries are copied into the guest, too (Cache.Userland).
	Userland string
	// Init is the program of package guest for the kernel's architecture.
	Init string
	// ResultsDir gets the files that steps wrote into guest.ResultsDir.
	ResultsDir string
	// Ended, if set, is called when a step has ended and its results are in ResultsDir.
	Ended func(StepResult)
	// Console gets the output of the kernel and of the steps.
	Console io.Writer
	// Silence is how long the console may print nothing.
	Silence time.Duration
	// HungAfter is the time after its limit within which a step must have ended, because the guest needs time to stop it. 0 means two minutes.
	HungAfter time.Duration
}

// Boot boots the kernel and runs the plan. It returns the exit status of each step that has ended. It returns an error with the last lines of the console if the
// plan was not completed: a Crash if that was the kernel's fault.
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
	watch.onEnd = func(e StepResult) {
		awaitSize(results, e.Sent)
		if err := extract(results, r.ResultsDir); err != nil {
			fmt.Fprintln(r.Console, "kernels:", err) // the last call of extract returns a lasting error
		}
		if r.Ended != nil {
			r.Ended(e)
		}
	}
	err = k.emulate(ctx, initramfs, results, r, watch)
	return watch.statuses, errors.Join(k.checkEnd(err, watch, r.Silence), extract(results, r.ResultsDir))
}

// resultsDelay is how much later than the console the results may arrive.
const resultsDelay = 30 * time.Second

// awaitSize waits until the file has the size. After a timeout it returns, and reading the results fails.
func awaitSize(path string, size int64) {
	for end := time.Now().Add(resultsDelay); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if info, err := os.Stat(path); size == 0 || err == nil && info.Size() >= size {
			return
		}
	}
}

var (
	// errEarly is the error of a machine that ended by itself.
	errEarly = errors.New("the machine ended before its plan")
	// errSilent is the error of a machine that printed nothing for too long.
	errSilent = errors.New("silent for too long")
	// errHung is the error of a machine that could not stop a step.
	errHung = errors.New("a step did not end after its limit")
)

// checkEnd returns an error if a machine did not end as planned.
func (k Kernel) checkEnd(err error, watch *console, silence time.Duration) error {
	missing := watch.missing()
	switch {
	case err == nil && watch.ended && len(missing) == 0:
		return nil
	case err == nil && watch.ended:
		err = fmt.Errorf("the plan ended, but the console does not show the end of: %s", strings.Join(missing, ", "))
	case err == nil && watch.guestError != "":
		err = fmt.Errorf("the guest could not continue: %s", watch.guestError)
	case err == nil:
		err = errEarly
	}
	err = fmt.Errorf("kernel %s (%s): %w\nthe last lines of the console:\n%s", k.Spec, k.Release, err, watch.last())
	switch {
	case errors.Is(err, errEarly):
		return watch.crash(err, "the machine ended by itself")
	case errors.Is(err, errSilent):
		return watch.crash(err, fmt.Sprintf("the machine was silent for %s", silence))
	case errors.Is(err, errHung):
		return watch.crash(err, "the machine hung: the guest did not stop the step at its limit")
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

// argsFor returns the arguments for all architectures. One thread emulates both processors, which takes a seventh more time. With a thread for each processor
// (QEMU 7.2), kernels sometimes panicked at breakpoints that they had written into code while the other processor ran it (text_poke). The kernel prints
// warnings, too, because a step fails if the kernel warns.
func (m machine) argsFor(image, initramfs, results string) []string {
	return []string{
		"-accel", "tcg,thread=single", "-smp", "2", "-m", "4096", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "file,id=results,path=" + results, "-device", "virtserialport,chardev=results",
		"-kernel", image, "-initrd", initramfs, "-append", "console=" + m.console + " loglevel=5 printk.time=1 panic=-1 oops=panic",
	}
}
