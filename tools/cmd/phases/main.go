// Command phases runs make targets one after another, also after a failure. Targets in one argument, with " + " between them, run at the same time. At
// the end it prints how long each target took, what passed, and how to run each failed test alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"kubelb.k8c.io/tools/phases"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "phases:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("phases", flag.ContinueOnError)
	dir := flags.String("dir", ".", "the directory with the Makefile")
	if err := flags.Parse(args); err != nil {
		return err
	}
	steps, err := phases.Parse(flags.Args())
	if err != nil {
		return err
	}
	runner := phases.Runner{Out: os.Stdout, Command: func(ctx context.Context, p phases.Phase) *exec.Cmd {
		return exec.CommandContext(ctx, "make", append([]string{"--no-print-directory", "-C", *dir}, p...)...)
	}}
	began := time.Now()
	results := runner.Run(ctx, steps)
	passed := phases.Sum(os.Stdout, results, time.Since(began))
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case !passed:
		return errors.New("not all phases passed")
	}
	return nil
}
