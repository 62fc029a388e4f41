// Command bench measures what a packet costs on a gateway by each dataplane, beside plain routing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"kubelb.k8c.io/tools/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	rounds := flags.Int("rounds", 9, "how often each path is measured")
	if err := flags.Parse(args); err != nil {
		return err
	}
	state, err := os.MkdirTemp("", "klbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	rows, err := bench.Run(ctx, bench.Options{Rounds: *rounds, State: state, Log: stderr, Progress: stderr})
	if err != nil {
		return err
	}
	table(stdout, rows)
	return nil
}

func table(out io.Writer, rows []bench.Row) {
	reference := rows[slices.IndexFunc(rows, func(r bench.Row) bool { return r.Name == bench.Reference })]
	fmt.Fprintln(out, "| path of a packet | ns, median | ns, best | ratio to plain routing, median | least to most | arrived |")
	fmt.Fprintln(out, "| --- | --- | --- | --- | --- | --- |")
	for _, r := range rows {
		ratios := r.Ratios(reference)
		fmt.Fprintf(out, "| %s | %.0f | %.0f | %.2f | %.2f to %.2f | %.3f |\n", r.Name, bench.Median(r.Nanoseconds), slices.Min(r.Nanoseconds), bench.Median(ratios), slices.Min(ratios), slices.Max(ratios), r.Arrived)
	}
}
