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

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/tools/kernels/guest"
)

// Running is the kernel of this machine. It is not booted: what is judged on it runs here.
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

// Running tells whether this is the kernel of this machine.
func (k Kernel) Running() bool { return k.image == "" }

// runHere runs the steps one after another, and returns their exit statuses. The programs write to the console.
func runHere(ctx context.Context, steps []guest.Step, console io.Writer) (map[string]int, error) {
	statuses := map[string]int{}
	for _, s := range steps {
		cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
		cmd.Stdout, cmd.Stderr, cmd.Env = console, console, append(os.Environ(), s.Env...)
		// It removes what it has made when it is told to end.
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		err := cmd.Run()
		var status *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return statuses, ctx.Err()
		case err != nil && !errors.As(err, &status):
			return statuses, fmt.Errorf("step %s: %w", s.Name, err)
		}
		statuses[s.Name] = cmd.ProcessState.ExitCode()
		fmt.Fprintf(console, "%s%s %d\n", guest.StepEnded, s.Name, statuses[s.Name])
	}
	return statuses, nil
}
