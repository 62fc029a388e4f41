// Command kernels boots kernels of Debian's archive under emulation and runs programs, or judges dataplanes, in them.
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

const usage = `kernels boots a kernel of Debian's archive in QEMU, without KVM, and runs a program in it, as root, or judges dataplanes.

  kernels --kernel=6.12/amd64 --file=bin/x:/x -- /x --flag      runs /x and exits with its status
  kernels --kernel=6.1/arm64 --backend=nftables,ebpf            judges each by the conformance suite and preflight, eBPF by its packet fixtures as well
  kernels --kernel=running --backend=nftables --patience=1      judges it on this machine's kernel

The console is printed here. Exit status: 0 when no case has failed, 1 when one has, now or by --results, 3 when the arguments are wrong, or the kernel
could not be fetched or booted. A case at which the kernel panics, hangs or prints nothing for --silence has failed, and another boot goes on after it.
A program at which it does so is status 3.

Flags:
`

// statusBroken is the exit status when nothing can be said of the programs.
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
	flags.StringVar(&o.kernel, "kernel", "6.12/"+runtime.GOARCH, "series and architecture (amd64, arm64), or "+running+": this machine's kernel, which is not booted")
	flags.BoolVar(&o.refresh, "refresh", false, "fetch the newest kernel of the series, even if there is one in the cache")
	flags.Func("modules", "modules to load first, separated by commas; others are loaded when the kernel asks for them", list(&o.modules))
	flags.DurationVar(&o.silence, "silence", 2*time.Minute, "for how long the console may print nothing")
	flags.StringVar(&o.programs, "programs", "bin/guest", "directory with a directory for each architecture: init, the guest's first process, and, to judge, kubelb-conformance, the manager, the backends, and the tests (make guest)")
	flags.Func("backend", "dataplanes to judge, separated by commas", list(&o.backends))
	flags.Func("case", "cases to judge them by, separated by commas: those of the conformance suite, "+kernels.Preflight+", and for eBPF "+kernels.Fixtures+"; all without it", list(&o.cases))
	flags.Float64Var(&o.patience, "patience", 0, "how many times as long as usual cases may take; without it 8 under emulation, else 1")
	flags.StringVar(&o.results, "results", "", "a directory: with --backend, for a file of each kernel, SERIES-ARCH.json, that results are added to, and a case without a failure in its last run is not judged again; else for what the program writes into "+guest.ResultsDir)
	flags.StringVar(&o.commit, "commit", "", "the commit that is judged, to be kept with results")
	flags.Func("file", "SOURCE:PATH puts a file into the guest; may be given several times", func(value string) error {
		source, path, ok := strings.Cut(value, ":")
		if !ok || !filepath.IsAbs(path) {
			return errors.New("write SOURCE:PATH with an absolute path")
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
		return 0, errors.New("name either a program to run, after --, or dataplanes to judge, by --backend")
	}
	if o.kernel == running {
		return o.judgeHere(ctx, stdout)
	}
	spec, err := kernels.ParseSpec(o.kernel)
	if err != nil {
		return 0, err
	}
	if err := o.judgeOf(spec.Arch).Check(); err != nil {
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
		return o.judge(ctx, kernel, userland, stdout)
	}
	steps, err := kernel.Boot(ctx, kernels.Run{Plan: guest.Plan{Modules: o.modules, Steps: []guest.Step{{Name: "program", Args: flags.Args()}}}, Files: o.files, Userland: userland,
		Init: filepath.Join(o.programs, spec.Arch, "init"), ResultsDir: o.results, Console: stdout, Silence: o.silence})
	return steps["program"], err
}

// running is the name of this machine's kernel.
const running = "running"

// patienceOf is how many times as long as usual everything takes on the kernel.
func patienceOf(k kernels.Kernel) float64 {
	if k.Running() {
		return 1
	}
	return 8
}

// judgeHere judges dataplanes on this machine's kernel.
func (o options) judgeHere(ctx context.Context, stdout io.Writer) (int, error) {
	if len(o.backends) == 0 {
		return 0, errors.New("--kernel=" + running + " runs no program: start it yourself, or name dataplanes to judge, by --backend")
	}
	kernel, err := kernels.Running()
	if err != nil {
		return 0, err
	}
	if err := o.judgeOf(kernel.Arch).Check(); err != nil {
		return 0, err
	}
	return o.judge(ctx, kernel, "", stdout)
}

// judgeOf has what the flags alone say of a judge.
func (o options) judgeOf(arch string) kernels.Judge {
	return kernels.Judge{Backends: o.backends, Cases: o.cases, Modules: o.modules, Programs: filepath.Join(o.programs, arch), Silence: o.silence, Commit: o.commit}
}

func (o options) judge(ctx context.Context, kernel kernels.Kernel, userland string, stdout io.Writer) (int, error) {
	judge := o.judgeOf(kernel.Arch)
	judge.Patience, judge.Userland, judge.Console = cmp.Or(o.patience, patienceOf(kernel)), userland, stdout
	if o.results != "" {
		judge.Results = filepath.Join(o.results, kernel.Series+"-"+kernel.Arch+".json")
	}
	judged, err := judge.Run(ctx, kernel)
	return report(stdout, kernel.Release, judged), err
}

// report prints what is known of the release, and returns the exit status. What failed in an earlier run, and has not been judged again, is failed.
func report(to io.Writer, release string, judged kernels.Judged) int {
	for _, r := range judged.Now {
		if r.Outcome == conformance.Failed {
			fmt.Fprintf(to, "failed: %s %s %s: %s\n", r.Backend, r.Case, r.Family, r.Reason)
		}
	}
	for _, r := range judged.Before {
		if r.Outcome == conformance.Failed {
			reason, _, _ := strings.Cut(r.Reason, "\n")
			fmt.Fprintf(to, "failed on %s, and not judged again: %s %s %s: %s\n", r.Date, r.Backend, r.Case, r.Family, reason)
		}
	}
	earlier := ""
	if n := len(judged.Before); n > 0 {
		earlier = fmt.Sprintf(" (%d of them in earlier runs)", n)
	}
	failed := judged.Count(conformance.Failed)
	fmt.Fprintf(to, "Linux %s: %d passed, %d failed, %d unsupported%s\n", release, judged.Count(conformance.Passed), failed, judged.Count(conformance.Unsupported), earlier)
	return min(failed, 1)
}
