// Command kernels boots a kernel of Debian's archive under emulation and runs programs in it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"kubelb.k8c.io/tools/kernels"
	"kubelb.k8c.io/tools/kernels/guest"
)

const usage = `kernels boots a kernel of Debian's archive under emulation (QEMU, no KVM) and runs a program in it, as root. What the program prints is printed
here; the exit status is the program's, or 3 when the kernel panicked, hung or was silent for too long.

  kernels --kernel=6.12/amd64 --file=bin/x:/x -- /x --flag

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	status, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(3)
	}
	os.Exit(status)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	flags := flag.NewFlagSet("kernels", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	kernel := flags.String("kernel", "6.12/amd64", "series and architecture")
	programs := flags.String("programs", "bin/guest", "directory with the programs for each architecture, in directories of their names; init is the guest's first process")
	refresh := flags.Bool("refresh", false, "fetch the newest kernel of the series, even if there is one in the cache")
	modules := flags.String("modules", "", "modules to load first, separated by commas; others are loaded when the kernel asks for them")
	silence := flags.Duration("silence", 2*time.Minute, "for how long the console may print nothing")
	results := flags.String("results", "", "directory for what the program writes into "+guest.ResultsDir)
	files := map[string]string{}
	flags.Func("file", "SOURCE:PATH puts a file into the guest; may be given several times", func(value string) error {
		source, path, ok := strings.Cut(value, ":")
		if !ok || !filepath.IsAbs(path) {
			return errors.New("write SOURCE:PATH with an absolute path")
		}
		files[path] = source
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if flags.NArg() == 0 {
		return 0, errors.New("name the program to run, after --")
	}
	spec, err := kernels.ParseSpec(*kernel)
	if err != nil {
		return 0, err
	}
	cache, err := kernels.DefaultCache(stderr)
	if err != nil {
		return 0, err
	}
	k, err := cache.Kernel(ctx, spec, *refresh)
	if err != nil {
		return 0, err
	}
	userland, err := cache.Userland(ctx, spec.Arch)
	if err != nil {
		return 0, err
	}
	plan := guest.Plan{Steps: []guest.Step{{Name: "program", Args: flags.Args()}}}
	if *modules != "" {
		plan.Modules = strings.Split(*modules, ",")
	}
	fmt.Fprintf(stderr, "booting Linux %s (%s)\n", k.Release, spec)
	steps, err := k.Boot(ctx, kernels.Run{Plan: plan, Files: files, Userland: userland, Init: filepath.Join(*programs, spec.Arch, "init"), ResultsDir: *results, Console: stdout, Silence: *silence})
	return steps["program"], err
}
