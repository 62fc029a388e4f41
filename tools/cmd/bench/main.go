// Command bench measures the cost of a packet on a gateway, and what clients of a gateway see, for each dataplane and for plain
// routing. It needs root. It works in network namespaces of its own.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"kubelb.k8c.io/tools/bench"
	"kubelb.k8c.io/tools/bench/traffic"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	only, proxies, plots, next, kubeProxy string
	loads                                 []string
	rows                                  []string
	rounds                                int
	packets                               uint
	long                                  time.Duration
	state                                 string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 9, "how many times each path is measured")
	flags.UintVar(&o.packets, "packets", 1_000_000, "how many packets each path gets in a round")
	flags.Func("rows", "which rows of packets, separated by commas: xdp, tcx, nftables, nftables-50k, flowtable, kube-proxy (default: all)", func(text string) error {
		o.rows = strings.Split(text, ",")
		return nil
	})
	flags.DurationVar(&o.long, "for", time.Second, "how long each load is sent in a round")
	flags.Func("loads", "which loads of traffic, separated by commas (default: all)", func(text string) error {
		o.loads = strings.Split(text, ",")
		return nil
	})
	flags.StringVar(&o.proxies, "proxies", "", "the directory with HAProxy and nginx (tools/unpack.sh proxies); if empty, they are left out")
	flags.StringVar(&o.kubeProxy, "kube-proxy", "", "the binary of kube-proxy (tools/kubernetes/build.sh); if empty, its rules are left out")
	flags.StringVar(&o.plots, "plots", "", "a directory for plots; if empty, there are none")
	flags.StringVar(&o.next, "next", "", "the directory with other builds of the plugins, for outlive")
	flags.StringVar(&o.only, "only", "", "packets (the cost of a packet on a gateway), traffic (what clients see) or outlive (what is lost while plugins are stopped and replaced) (default: packets and traffic)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if !slices.Contains([]string{"", "packets", "traffic", "outlive"}, o.only) {
		return fmt.Errorf("--only=%s: give packets, traffic or outlive", o.only)
	}
	if o.only == "outlive" && o.next == "" {
		return errors.New("--only=outlive needs --next, a directory with other builds of the plugins")
	}
	if o.rounds < 1 {
		return fmt.Errorf("--rounds=%d: give 1 or more", o.rounds)
	}
	if o.state, err = os.MkdirTemp("", "klbench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.state)) }()
	log, err := os.Create(filepath.Join(o.state, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	for _, instrument := range []struct {
		name string
		run  func(context.Context, options, io.Writer, io.Writer, io.Writer) error
	}{{"packets", packets}, {"traffic", clients}, {"outlive", outlive}} {
		if o.only == instrument.name || o.only == "" && instrument.name != "outlive" {
			if err := instrument.run(ctx, o, stdout, stderr, log); err != nil {
				return o.explain(err)
			}
		}
	}
	return nil
}

// explain adds the end of the log of plugins and proxies.
func (o options) explain(err error) error {
	text, readErr := os.ReadFile(filepath.Join(o.state, "log"))
	return errors.Join(err, readErr, fmt.Errorf("the end of the log:\n%s", text[max(0, len(text)-2000):]))
}

func packets(ctx context.Context, o options, stdout, stderr, log io.Writer) error {
	rows, err := bench.Run(ctx, bench.Options{Rounds: o.rounds, Packets: uint32(o.packets), Only: o.rows, KubeProxy: o.kubeProxy, State: o.state, Log: log, Progress: stderr})
	if err != nil {
		return err
	}
	reference := rows[slices.IndexFunc(rows, func(r bench.Row) bool { return r.Name == bench.Reference })]
	fmt.Fprintln(stdout, "| path of a packet | ns, median | ns, best | ratio to plain routing, median | least to most | arrived |")
	fmt.Fprintln(stdout, "| --- | --- | --- | --- | --- | --- |")
	var bars []bench.Bar
	for _, r := range rows {
		b := bench.NewBar(r.Name, r.Ratios(reference))
		bars = append(bars, b)
		fmt.Fprintf(stdout, "| %s | %.0f | %.0f | %.2f | %.2f to %.2f | %.3f |\n", r.Name, bench.Median(r.Nanoseconds), slices.Min(r.Nanoseconds), b.Median, b.Least, b.Max, r.Arrived)
	}
	const group = "processor time of a packet"
	return o.plot("packets.svg", "What a packet costs on a gateway, plain routing being 1", []string{group}, map[string][]bench.Bar{group: bars})
}

func clients(ctx context.Context, o options, stdout, stderr, log io.Writer) error {
	results, err := traffic.Run(ctx, traffic.Options{Rounds: o.rounds, Loads: o.loads, Long: o.long, Proxies: o.proxies, State: o.state, Log: log, Progress: stderr})
	if err != nil {
		return err
	}
	var groups []string
	bars := map[string][]bench.Bar{}
	for _, l := range traffic.Loads() {
		if len(o.loads) > 0 && !slices.Contains(o.loads, l.Name) {
			continue
		}
		fmt.Fprintf(stdout, "\n%s:\n\n| by | %s, median | ratio to plain routing, median | least to most | processor, µs for each | ratio |\n| --- | --- | --- | --- | --- | --- |\n", l.Name, l.Unit)
		groups = append(groups, l.Name)
		for _, r := range results {
			if len(r.Samples[l.Name]) == 0 {
				continue
			}
			values, processor := ratios(results, r, l.Name)
			b := bench.NewBar(r.Target, values)
			bars[l.Name] = append(bars[l.Name], b)
			fmt.Fprintf(stdout, "| %s | %.0f | %.2f | %.2f to %.2f | %.1f | %.2f |\n", r.Target, median(r.Samples[l.Name], value), b.Median, b.Least, b.Max, median(r.Samples[l.Name], cpu), bench.Median(processor))
		}
	}
	return o.plot("traffic.svg", "What clients of a gateway see, plain routing between such interfaces being 1", groups, bars)
}

func outlive(ctx context.Context, o options, stdout, stderr, log io.Writer) error {
	losses, err := traffic.MeasureRestarts(ctx, traffic.Options{Long: 10 * o.long, State: o.state, Log: log, Progress: stderr}, o.next)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "| plugin of | how often | datagrams sent | lost | connections | failed | slowest | requests | failed | slowest |")
	fmt.Fprintln(stdout, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, l := range losses {
		fmt.Fprintf(stdout, "| %s, %s | %d | %d | %d | %d | %d | %d ms | %d | %d | %d ms |\n", l.Target, l.Phase, l.Ended, l.Sent, l.Sent-l.Arrived,
			l.Connections.Done, l.Connections.Failed, l.Connections.Longest.Milliseconds(), l.Requests.Done, l.Requests.Failed, l.Requests.Longest.Milliseconds())
	}
	return nil
}

func value(s traffic.Sample) float64 { return s.Value }
func cpu(s traffic.Sample) float64   { return s.CPU }

func median(samples []traffic.Sample, of func(traffic.Sample) float64) float64 {
	var all []float64
	for _, s := range samples {
		all = append(all, of(s))
	}
	return bench.Median(all)
}

// ratios returns the ratios to the result's reference in the same rounds.
func ratios(results []traffic.Result, r traffic.Result, load string) (values, processor []float64) {
	reference := results[slices.IndexFunc(results, func(o traffic.Result) bool { return o.Target == r.Reference })].Samples[load]
	for i, s := range r.Samples[load] {
		values = append(values, s.Value/reference[i].Value)
		processor = append(processor, s.CPU/reference[i].CPU)
	}
	return values, processor
}

func (o options) plot(file, title string, groups []string, bars map[string][]bench.Bar) (err error) {
	if o.plots == "" {
		return nil
	}
	out, err := os.Create(filepath.Join(o.plots, file))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return bench.Plot(out, title, groups, bars)
}
