package kernels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/tools/kernels/guest"
)

// Running returns the kernel of this machine. It is not booted: programs run on this machine.
func Running() (Kernel, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Kernel{}, fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	return Kernel{Spec: Spec{Series: major + "." + minor, Arch: runtime.GOARCH}, Release: release}, nil
}

// Running reports whether this is the kernel of this machine.
func (k Kernel) Running() bool { return k.image == "" }

// runHere runs the steps one after another on this machine, and calls ended after each step. The programs write to the console.
func runHere(ctx context.Context, steps []guest.Step, console io.Writer, ended func(StepResult)) error {
	for _, s := range steps {
		status, err := runStep(ctx, s, console)
		if err != nil {
			return err
		}
		fmt.Fprintf(console, "%s%s %d\n", guest.StepEnded, s.Name, status)
		ended(StepResult{Step: s, Status: status})
	}
	return nil
}

// terminationTime is how long a step may take to end after SIGTERM.
const terminationTime = 30 * time.Second

// runStep runs a step and returns its exit status, or guest.StatusLimit if it exceeded its limit.
func runStep(ctx context.Context, s guest.Step, console io.Writer) (int, error) {
	stepCtx, stop := context.WithCancel(ctx)
	defer stop()
	if s.Limit > 0 {
		defer time.AfterFunc(s.Limit, stop).Stop()
	}
	cmd := exec.CommandContext(stepCtx, s.Args[0], s.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = console, console, append(os.Environ(), s.Env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = terminationTime
	err := cmd.Run()
	var status *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case stepCtx.Err() != nil:
		return guest.StatusLimit, nil
	case err != nil && !errors.As(err, &status) && !errors.Is(err, exec.ErrWaitDelay): // a child of the step may still have its output open
		return 0, fmt.Errorf("step %s: %w", s.Name, err)
	}
	return cmd.ProcessState.ExitCode(), nil
}
