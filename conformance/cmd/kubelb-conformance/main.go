// Command kubelb-conformance judges a dataplane by packets.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/lab"
)

const usage = `kubelb-conformance judges a dataplane by packets: it runs the backend's binary in a lab of network namespaces, drives it
through the plugin contract, and looks at what arrives where. It needs root and the tool nft, changes nothing outside of its
namespaces, and leaves nothing behind. The exit status is 0 when every case that the backend supports has passed, 1 when
one failed, 2 when nothing could be judged.

  kubelb-conformance --backend=nftables
  kubelb-conformance --backend=/path/to/plugin --case=tcp-echo,drain -v

Flags:
`

type flags struct {
	backend, upgrade, switchTo, cases, feature, report, junit string
	rounds                                                    int
	patience                                                  float64
	roundsIn                                                  string
	list, verbose                                             bool
	options                                                   map[string]string
}

func main() {
	var f flags
	set := flag.NewFlagSet("kubelb-conformance", flag.ExitOnError)
	set.Usage = func() {
		fmt.Fprint(set.Output(), usage)
		set.PrintDefaults()
	}
	set.StringVar(&f.backend, "backend", "", "the name of a backend, whose binary kubelb-backend-NAME lies beside this one or in PATH, or a path")
	f.options = map[string]string{}
	set.Func("backend-option", "key=value for the judged backend; may be given several times", func(value string) error {
		key, value, ok := strings.Cut(value, "=")
		if !ok {
			return errors.New("is not key=value")
		}
		f.options[key] = value
		return nil
	})
	set.StringVar(&f.upgrade, "upgrade-to", "", "another build of the backend, a path, that the case of upgrading goes on with (default: the same one)")
	set.StringVar(&f.switchTo, "switch-to", "", "backends, names or paths separated by commas, that the case of switching goes to and back from; the judged one is left out")
	set.StringVar(&f.cases, "case", "", "run only these cases, separated by commas")
	set.StringVar(&f.feature, "feature", "", "run only the cases that need this feature")
	set.IntVar(&f.rounds, "rounds", 0, "run the whole suite so often, and write to --report the sum of all rounds; needs --rounds-in")
	set.StringVar(&f.roundsIn, "rounds-in", "", "the directory for the reports of the rounds; what lies there already is not run again")
	set.Float64Var(&f.patience, "patience", 1, "how many times as long as usual everything may take, and is waited for: for kernels under emulation, where it is judged the same")
	set.StringVar(&f.report, "report", "", "write the report to this file, as YAML")
	set.StringVar(&f.junit, "junit", "", "write the report to this file, as JUnit XML")
	set.BoolVar(&f.list, "list", false, "list the cases and what each one shows")
	set.BoolVar(&f.verbose, "v", false, "show what backend and case write, and the packet trace, of runs that fail")
	_ = set.Parse(os.Args[1:]) // it exits by itself
	if f.list {
		list(os.Stdout)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	failed, err := f.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelb-conformance:", err)
		os.Exit(2)
	}
	if failed {
		os.Exit(1)
	}
}

func list(out io.Writer) {
	for _, c := range cases.All() {
		needs := ""
		for _, need := range c.Needs {
			needs += " [" + string(need) + "]"
		}
		fmt.Fprintf(out, "%-28s%s%s\n", c.Name, c.Shows, needs)
	}
}

func (f flags) run(ctx context.Context) (failed bool, err error) {
	if f.backend == "" {
		return false, errors.New("--backend is empty: give a name or a path")
	}
	if f.patience < 1 {
		return false, fmt.Errorf("--patience=%g: give 1 or more", f.patience)
	}
	path, err := plugin.Find(f.backend)
	if err != nil {
		return false, err
	}
	options := conformance.Options{Feature: dataplane.Feature(f.feature), Patience: lab.Patience(f.patience), Progress: f.progress}
	if f.cases != "" {
		options.Cases = strings.Split(f.cases, ",")
	}
	if f.upgrade != "" {
		options.UpgradeTo = f.judged(f.upgrade)
	}
	if options.SwitchTo, err = f.others(path); err != nil {
		return false, err
	}
	judge := func() (conformance.Report, error) { return f.judge(ctx, path, options) }
	if f.rounds > 0 {
		return f.soak(judge)
	}
	report, err := judge()
	if err != nil {
		return false, err
	}
	return report.Counts[conformance.Failed] > 0, f.write(report)
}

// judged is the backend of the path, with its options.
func (f flags) judged(path string) cases.Backend {
	return conformance.WithOptions(conformance.Plugin(path), f.options)
}

// others are the backends to switch to.
func (f flags) others(judged string) ([]cases.Backend, error) {
	var others []cases.Backend
	for name := range strings.SplitSeq(f.switchTo, ",") {
		if name == "" {
			continue
		}
		path, err := plugin.Find(name)
		if err != nil {
			return nil, fmt.Errorf("--switch-to: %w", err)
		}
		if path != judged {
			others = append(others, conformance.Plugin(path))
		}
	}
	return others, nil
}

// judge runs the suite once.
func (f flags) judge(ctx context.Context, path string, options conformance.Options) (conformance.Report, error) {
	report, err := conformance.Judge(ctx, f.judged(path), options)
	if err != nil {
		return report, err
	}
	fmt.Printf("%s %s on %s: %d passed, %d failed, %d unsupported in %s\n", report.Backend.Name, report.Backend.Version, report.Kernel,
		report.Counts[conformance.Passed], report.Counts[conformance.Failed], report.Counts[conformance.Unsupported], report.Duration)
	return report, nil
}

// soak runs the suite many times.
func (f flags) soak(judge func() (conformance.Report, error)) (failed bool, err error) {
	if f.roundsIn == "" || f.cases != "" || f.feature != "" || f.junit != "" {
		return false, errors.New("--rounds needs --rounds-in, and goes with neither --case, --feature nor --junit")
	}
	sum, err := conformance.JudgeRounds(f.rounds, f.roundsIn, func(round int) (conformance.Report, error) {
		fmt.Printf("round %d of %d\n", round, f.rounds)
		return judge()
	})
	if err != nil {
		return false, err
	}
	fmt.Printf("%s, %d rounds: %d passed, %d failed, %d unsupported\n", sum.Backend.Name, sum.Rounds, sum.Counts[conformance.Passed], len(sum.Failures), sum.Counts[conformance.Unsupported])
	if f.report == "" {
		return len(sum.Failures) > 0, nil
	}
	text, err := sum.YAML()
	if err != nil {
		return false, err
	}
	return len(sum.Failures) > 0, os.WriteFile(f.report, text, 0o644)
}

func (f flags) progress(r conformance.Run) {
	fmt.Printf("%-12s%-28s%-6s%8s", r.Outcome, r.Case, r.Family, r.Duration)
	switch r.Outcome {
	case conformance.Unsupported:
		fmt.Printf("  %s", r.Reason)
	case conformance.Failed:
		fmt.Printf("\n%s does not hold:\n%s", r.Shows, r.Reason)
		if f.verbose {
			fmt.Printf("\n%s\n%s", r.Log, r.Trace)
		}
	}
	fmt.Println()
	for _, line := range r.Measured {
		fmt.Printf("%40s  %s\n", "", line)
	}
}

func (f flags) write(report conformance.Report) error {
	if f.report != "" {
		text, err := report.YAML()
		if err != nil {
			return err
		}
		if err := os.WriteFile(f.report, text, 0o644); err != nil {
			return err
		}
	}
	if f.junit == "" {
		return nil
	}
	out, err := os.Create(f.junit)
	if err != nil {
		return err
	}
	return errors.Join(report.JUnit(out), out.Close())
}
