// Command kernels boots kernels of Debian's archive under emulation, and runs programs or tests dataplanes on them.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/tools/kernels"
	"kubelb.k8c.io/tools/kernels/guest"
)

const usage = `kernels boots a kernel of Debian's archive in QEMU, without KVM, and runs a program in it, as root, or tests dataplanes.

  kernels --kernel=6.12/amd64 --file=bin/x:/x -- /x --flag      runs /x and exits with its status
  kernels --kernel=6.1/arm64 --backend=nftables,ebpf            tests both by the conformance suite and preflight, and eBPF by its packet fixtures
  kernels --kernel=running --backend=nftables --patience=1      tests nftables on this machine's kernel

It prints the console of the kernel. The exit status is 0 if no case failed, 1 if a case failed, now or in --results, and 3 if the arguments are
wrong, or if the kernel could not be fetched or booted. A case fails if the kernel panics, hangs, or prints nothing for --silence; a new boot
continues after that case. If that happens while a program runs, the exit status is 3.

Flags:
`

// statusBroken is the exit status if the program or the dataplanes could not run.
const statusBroken = 3

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		status = statusBroken
	}
	os.Exit(status)
}

type options struct {
	kernel, programs, results, commit string
	modules, backends, cases          []string
	files                             map[string]string
	refresh                           bool
	patience                          float64
	silence                           time.Duration
}

func (o *options) register(flags *flag.FlagSet) {
	list := func(into *[]string) func(string) error {
		return func(value string) error {
			*into = slices.DeleteFunc(strings.Split(value, ","), func(s string) bool { return s == "" })
			return nil
		}
	}
	flags.StringVar(&o.kernel, "kernel", "6.12/"+runtime.GOARCH, "series and architecture (amd64, arm64), or "+running+" for this machine's kernel, without an emulator")
	flags.BoolVar(&o.refresh, "refresh", false, "fetch the newest kernel of the series, even if the cache has one")
	flags.Func("modules", "modules to load first, separated by commas; the kernel loads other modules on demand", list(&o.modules))
	flags.DurationVar(&o.silence, "silence", 2*time.Minute, "how long the console may print nothing")
	flags.StringVar(&o.programs, "programs", "bin/guest", "directory with a subdirectory for each architecture, with init, the guest's first process; to test dataplanes, also with kubelb-conformance, the manager, the plugins and the tests (make guest)")
	flags.Func("backend", "dataplanes to test, separated by commas", list(&o.backends))
	flags.Func("case", "cases, separated by commas: those of the conformance suite, "+kernels.Preflight+", and for eBPF "+kernels.Fixtures+" (default: all)", list(&o.cases))
	flags.Float64Var(&o.patience, "patience", 0, "the factor by which timeouts are longer than usual (default: 8 under emulation, else 1)")
	flags.StringVar(&o.results, "results", "", "a directory. With --backend: for a file of each kernel, SERIES-ARCH.json, to which results are added; cases without a failure in their last run are not tested again. Else: for the files that the program writes into "+guest.ResultsDir)
	flags.StringVar(&o.commit, "commit", "", "the tested commit, for the results")
	flags.Func("file", "SOURCE:PATH copies a file into the guest; may be given several times", func(value string) error {
		source, path, ok := strings.Cut(value, ":")
		if !ok || !filepath.IsAbs(path) {
			return errors.New("give SOURCE:PATH with an absolute path")
		}
		o.files[path] = source
		return nil
	})
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	o := options{files: map[string]string{}}
	flags := flag.NewFlagSet("kernels", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	o.register(flags)
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if (flags.NArg() == 0) == (len(o.backends) == 0) {
		return 0, errors.New("give either a program to run, after --, or dataplanes to test, with --backend")
	}
	if o.kernel == running {
		return o.testHere(ctx, stdout)
	}
	spec, err := kernels.ParseSpec(o.kernel)
	if err != nil {
		return 0, err
	}
	if err := o.testerOf(spec.Arch).Check(); err != nil {
		return 0, err
	}
	cache, err := kernels.DefaultCache(stderr)
	if err != nil {
		return 0, err
	}
	kernel, err := cache.Kernel(ctx, spec, o.refresh)
	if err != nil {
		return 0, err
	}
	userland, err := cache.Userland(ctx, spec.Arch)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(stderr, "booting Linux %s (%s)\n", kernel.Release, spec)
	if len(o.backends) > 0 {
		return o.test(ctx, kernel, userland, stdout)
	}
	steps, err := kernel.Boot(ctx, kernels.Run{Plan: guest.Plan{Modules: o.modules, Steps: []guest.Step{{Name: "program", Args: flags.Args()}}}, Files: o.files, Userland: userland,
		Init: filepath.Join(o.programs, spec.Arch, "init"), ResultsDir: o.results, Console: stdout, Silence: o.silence})
	return steps["program"], err
}

// running is the name of this machine's kernel.
const running = "running"

// patienceOf returns the factor by which timeouts are longer on the kernel.
func patienceOf(k kernels.Kernel) float64 {
	if k.Running() {
		return 1
	}
	return 8
}

// testHere tests dataplanes on this machine's kernel.
func (o options) testHere(ctx context.Context, stdout io.Writer) (int, error) {
	if len(o.backends) == 0 {
		return 0, errors.New("--kernel=" + running + " runs no program: start the program yourself, or give dataplanes to test, with --backend")
	}
	kernel, err := kernels.Running()
	if err != nil {
		return 0, err
	}
	if err := o.testerOf(kernel.Arch).Check(); err != nil {
		return 0, err
	}
	return o.test(ctx, kernel, "", stdout)
}

// testerOf returns a tester with the settings of the flags.
func (o options) testerOf(arch string) kernels.Tester {
	return kernels.Tester{Backends: o.backends, Cases: o.cases, Modules: o.modules, Programs: filepath.Join(o.programs, arch), Silence: o.silence, Commit: o.commit}
}

func (o options) test(ctx context.Context, kernel kernels.Kernel, userland string, stdout io.Writer) (int, error) {
	tester := o.testerOf(kernel.Arch)
	tester.Patience, tester.Userland, tester.Console = cmp.Or(o.patience, patienceOf(kernel)), userland, stdout
	if o.results != "" {
		tester.Results = filepath.Join(o.results, kernel.Series+"-"+kernel.Arch+".json")
	}
	results, err := tester.Run(ctx, kernel)
	return report(stdout, kernel.Release, results), err
}

// report prints the results of the release, and returns the exit status. A case that failed in an earlier run, and was not tested again, counts as failed.
func report(to io.Writer, release string, results kernels.Results) int {
	for _, r := range results.Current {
		if r.Outcome == conformance.Failed {
			fmt.Fprintf(to, "failed: %s %s %s: %s\n", r.Backend, r.Case, r.Family, r.Reason)
		}
	}
	for _, r := range results.Earlier {
		if r.Outcome == conformance.Failed {
			reason, _, _ := strings.Cut(r.Reason, "\n")
			fmt.Fprintf(to, "failed on %s, and not tested again: %s %s %s: %s\n", r.Date, r.Backend, r.Case, r.Family, reason)
		}
	}
	earlier := ""
	if n := len(results.Earlier); n > 0 {
		earlier = fmt.Sprintf(" (%d of them in earlier runs)", n)
	}
	failed := results.Count(conformance.Failed)
	fmt.Fprintf(to, "Linux %s: %d passed, %d failed, %d unsupported%s\n", release, results.Count(conformance.Passed), failed, results.Count(conformance.Unsupported), earlier)
	return min(failed, 1)
}
