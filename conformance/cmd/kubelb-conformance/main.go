// Command kubelb-conformance tests a dataplane with packets.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/lab"
)

const usage = `kubelb-conformance tests a dataplane with packets: it runs the plugin in a lab of network namespaces, drives it
through the plugin contract, and checks which packets arrive where. It needs root and the tool nft. It changes nothing
outside its namespaces, and removes them. The exit status is 0 if all supported cases passed, 1 if a case failed, and 2 if
the dataplane could not be tested, or not by all cases.

  kubelb-conformance --backend=nftables
  kubelb-conformance --backend=/path/to/plugin --case=tcp-echo,drain -v

It shows what runs: on a terminal in the last line, otherwise in a line for each run that takes longer than 15 s. A failure
is three lines: what was expected, what was seen, and the command that runs this case alone. A plugin that ends by itself is
shown with its exit status and all that it wrote.

Each call of the plugin and each case has a time limit. A plugin that hangs is named with the call, and is killed. After three
cases in a row in which it hangs the suite ends. An interrupt (SIGINT, SIGTERM, SIGHUP) ends the suite within five seconds. It
removes everything that it made, and writes the report of the runs that were done, which is marked as partial. If the suite
is killed, its next run removes what it left.

Flags:
`

type flags struct {
	backend, upgrade, switchTo, cases, feature, report, junit string
	rounds, parallel                                          int
	patience                                                  float64
	roundsIn                                                  string
	list, verbose, keepGoing                                  bool
	options                                                   map[string]string
	screen                                                    *screen
}

func main() {
	var f flags
	set := flag.NewFlagSet("kubelb-conformance", flag.ExitOnError)
	set.Usage = func() {
		fmt.Fprint(set.Output(), usage)
		set.PrintDefaults()
	}
	set.StringVar(&f.backend, "backend", "", "the plugin to test: a path, or the NAME of kubelb-backend-NAME next to this program or in PATH")
	f.options = map[string]string{}
	set.Func("backend-option", "an option key=value of the tested plugin; may be given several times", func(value string) error {
		key, value, ok := strings.Cut(value, "=")
		if !ok {
			return errors.New("not of the form key=value")
		}
		f.options[key] = value
		return nil
	})
	set.StringVar(&f.upgrade, "upgrade-to", "", "the path of another build of the plugin, for the case \"restart\" (default: the tested build)")
	set.StringVar(&f.switchTo, "switch-to", "", "other plugins for the case \"switching\": names or paths, separated by commas; the tested plugin is skipped")
	set.StringVar(&f.cases, "case", "", "run only these cases, separated by commas")
	set.StringVar(&f.feature, "feature", "", "run only the cases that need this feature")
	set.IntVar(&f.rounds, "rounds", 0, "run the whole suite this many times, and write the sum of all rounds to --report; needs --rounds-in")
	set.StringVar(&f.roundsIn, "rounds-in", "", "the directory for the reports of the rounds; rounds whose reports are there do not run again")
	set.Float64Var(&f.patience, "patience", 1, "the factor by which all timeouts are longer than usual, for emulated kernels; the judgement stays the same")
	set.StringVar(&f.report, "report", "", "write the report to this file, as YAML")
	set.StringVar(&f.junit, "junit", "", "write the report to this file, as JUnit XML")
	set.BoolVar(&f.list, "list", false, "list the cases and what each of them shows")
	set.IntVar(&f.parallel, "parallel", 1, "the number of cases that run side by side; cases that measure times or move much data run alone")
	set.BoolVar(&f.keepGoing, "keep-going", false, "go on after three cases in a row in which the plugin hangs")
	set.BoolVar(&f.verbose, "v", false, "show all messages with their stacks, the log, and the packet trace of failed runs")
	_ = set.Parse(os.Args[1:]) // exits by itself if it fails
	if f.list {
		list(os.Stdout)
		return
	}
	f.screen = newScreen(os.Stdout)
	failed, err := f.run(f.screen.interruptible())
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
	if f.parallel < 1 {
		return false, fmt.Errorf("--parallel=%d: give 1 or more", f.parallel)
	}
	path, err := plugin.Find(f.backend)
	if err != nil {
		return false, err
	}
	options := conformance.Options{Feature: dataplane.Feature(f.feature), Patience: lab.Patience(f.patience), Parallel: f.parallel, KeepGoing: f.keepGoing,
		Progress: f.progress, Notice: func(line string) { f.screen.printf("%s\n", line) }, Monitor: &conformance.Monitor{}, Command: f.alone}
	if f.cases != "" {
		options.Cases = strings.Split(f.cases, ",")
	}
	if f.upgrade != "" {
		options.UpgradeTo = f.backendAt(f.upgrade)
	}
	if options.SwitchTo, err = f.others(path); err != nil {
		return false, err
	}
	stop := f.screen.follow(options.Monitor)
	defer stop()
	run := func() (conformance.Report, error) { return f.runSuite(ctx, path, options) }
	if f.rounds > 0 {
		return f.soak(run)
	}
	report, err := run()
	if report.Backend.Name != "" { // a partial report says so
		err = errors.Join(err, f.write(report))
	}
	return report.Counts[conformance.Failed] > 0, err
}

// backendAt returns the plugin of the path, with the options.
func (f flags) backendAt(path string) cases.Backend {
	return conformance.WithOptions(conformance.Plugin(path), f.options)
}

// others returns the plugins to switch to.
func (f flags) others(tested string) ([]cases.Backend, error) {
	var others []cases.Backend
	for name := range strings.SplitSeq(f.switchTo, ",") {
		if name == "" {
			continue
		}
		path, err := plugin.Find(name)
		if err != nil {
			return nil, fmt.Errorf("--switch-to: %w", err)
		}
		if path != tested {
			others = append(others, conformance.Plugin(path))
		}
	}
	return others, nil
}

// runSuite runs the suite once.
func (f flags) runSuite(ctx context.Context, path string, options conformance.Options) (conformance.Report, error) {
	report, err := conformance.RunCases(ctx, f.backendAt(path), options)
	if report.Backend.Name == "" {
		return report, err
	}
	partial := ""
	if report.Partial != "" {
		partial = ", and not all cases ran"
	}
	f.screen.printf("%s %s on %s: %d passed, %d failed, %d unsupported in %s%s\n", report.Backend.Name, report.Backend.Version, report.Kernel,
		report.Counts[conformance.Passed], report.Counts[conformance.Failed], report.Counts[conformance.Unsupported], report.Duration, partial)
	return report, err
}

// soak runs the suite many times.
func (f flags) soak(run func() (conformance.Report, error)) (failed bool, err error) {
	if f.roundsIn == "" || f.cases != "" || f.feature != "" || f.junit != "" {
		return false, errors.New("--rounds needs --rounds-in, and cannot be used with --case, --feature or --junit")
	}
	sum, err := conformance.RunRounds(f.rounds, f.roundsIn, func(round int) (conformance.Report, error) {
		f.screen.printf("round %d of %d\n", round, f.rounds)
		return run()
	})
	if err != nil {
		return false, err
	}
	f.screen.printf("%s, %d rounds: %d passed, %d failed, %d unsupported\n", sum.Backend.Name, sum.Rounds, sum.Counts[conformance.Passed], len(sum.Failures), sum.Counts[conformance.Unsupported])
	if f.report == "" {
		return len(sum.Failures) > 0, nil
	}
	text, err := sum.YAML()
	if err != nil {
		return false, err
	}
	return len(sum.Failures) > 0, os.WriteFile(f.report, text, 0o644)
}

// progress shows a run that is done.
func (f flags) progress(r conformance.Run) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-12s%-28s%-6s%8s", r.Outcome, r.Case, r.Family, r.Duration)
	switch r.Outcome {
	case conformance.Unsupported:
		fmt.Fprintf(&b, "  %s", r.Reason)
	case conformance.Failed:
		fmt.Fprintf(&b, "  not true: %s\n%s", r.Shows, r.Explanation(f.verbose))
		if f.verbose {
			fmt.Fprintf(&b, "\nlog:\n%s\n%s", r.Log, r.Trace)
		}
	}
	fmt.Fprintln(&b)
	for _, line := range r.Measured {
		fmt.Fprintf(&b, "%40s  %s\n", "", line)
	}
	f.screen.printf("%s", b.String())
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
