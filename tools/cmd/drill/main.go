// Command drill makes gateways fail under load, on a hub with three gateways, and reports what clients notice. It stores its
// results, so that an interrupted run can continue. It needs root. It works in namespaces of its own.
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
	"strings"
	"syscall"
	"time"

	"kubelb.k8c.io/tools/cluster"
	"kubelb.k8c.io/tools/drill"
	"kubelb.k8c.io/tools/results"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "drill:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env func(string) string, stdout io.Writer) error {
	flags := flag.NewFlagSet("drill", flag.ContinueOnError)
	rounds := flags.Int("rounds", 20, "how many times each failure is caused, including those in --results")
	backend := flags.String("backend", "nftables", "the gateways' dataplane")
	forwarding := flags.String("forwarding", "nat", "how packets reach the nodes: nat, or direct, with nodes that accept the external addresses")
	announce := flags.String("announce", drill.Layer2, "how gateways announce addresses: layer2, to clients on the segment, or bgp, to a router with clients behind it")
	bird := flags.String("bird", "", "the directory with BIRD (tools/unpack.sh router), the router for bgp")
	restarts := flags.Bool("restarts", false, "with bgp: restart managers while the router keeps their routes, instead of making gateways fail")
	file := flags.String("results", "", "a file to which each result is added, as a line of JSON; what is in the file is not done again")
	only := flags.String("failures", "", "which failures, separated by commas (default: all): "+strings.Join(drill.Options{}.Names(), ", "))
	random := flags.Int("schedules", 0, "run this many random schedules of failures and repairs instead, after the schedules that once found a fault")
	outage := flags.Duration("outage", 0, "freeze the hub's API for this time instead, at least 10s")
	seed := flags.Uint64("seed", 1, "the seed of the first random schedule; the next schedules have the next numbers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o := drill.Options{Kubernetes: env("KUBELB_KUBERNETES"), Products: env("KUBELB_BIN"), Backend: *backend, Forwarding: *forwarding, Announce: *announce, BIRD: *bird, Restarts: *restarts, Progress: stdout}
	o.Failures = o.Names()
	if o.Kubernetes == "" || o.Products == "" {
		return errors.New("run it with make drill")
	}
	if *outage > 0 {
		if err := cluster.Isolate(); err != nil {
			return err
		}
		r, err := drill.Outage(ctx, o, max(*outage, 10*time.Second))
		fmt.Fprintf(stdout, "the hub's API was frozen for %s, and a node died: %s\n", *outage, r)
		return err
	}
	if *random > 0 {
		return schedules(ctx, o, *seed, *random, stdout)
	}
	if *only != "" {
		o.Failures = strings.Split(*only, ",")
	}
	for _, name := range o.Failures {
		if !slices.Contains(o.Names(), name) {
			return fmt.Errorf("--failures: there is no failure %q; the failures are %s", name, strings.Join(o.Names(), ", "))
		}
	}
	all, err := results.Read[drill.Result](*file)
	if err != nil {
		return err
	}
	done := len(all)
	for _, name := range o.Failures {
		done = min(done, count(all, name))
	}
	if o.Rounds = *rounds - done; o.Rounds > 0 {
		if err := cluster.Isolate(); err != nil {
			return err
		}
		err = drill.Run(ctx, o, func(r drill.Result) error {
			all = append(all, r)
			fmt.Fprintf(stdout, "%s, %d of %d: gap %s, %d of %d requests failed, %d slow, %d connections kept, %d lost, %d lost to addresses of other gateways, two answers for %s\n",
				r.Failure, count(all, r.Failure), *rounds, r.Gap.Round(time.Millisecond), r.Failed, r.Requests, r.Slow, r.Kept, r.Lost, r.LostByOthers, r.DoubleAnswer)
			return errors.Join(results.Add(*file, r), broken(o, r))
		})
	}
	fmt.Fprint(stdout, "\n", o.Table(all))
	return err
}

// broken returns an error if the result breaks a promise.
func broken(o drill.Options, r drill.Result) error {
	if promises := o.Broken(r); len(promises) > 0 {
		return fmt.Errorf("%s: %s", r.Failure, strings.Join(promises, "; "))
	}
	return nil
}

// schedules runs the schedules that once found a fault, and random ones with consecutive seeds.
func schedules(ctx context.Context, o drill.Options, first uint64, n int, stdout io.Writer) error {
	seeds := make([]uint64, n)
	for i := range seeds {
		seeds[i] = first + uint64(i)
	}
	if err := cluster.Isolate(); err != nil {
		return err
	}
	return drill.Schedules(ctx, o, seeds, func(s drill.ScheduleResult) error {
		_, err := fmt.Fprintf(stdout, "%s: %d events, two answers for at most %s, one answer for each address %s after all repairs\n", s.Name, s.Events, s.DoubleAnswer, s.Settled.Round(time.Millisecond))
		return err
	})
}

func count(all []drill.Result, failure string) (n int) {
	for _, r := range all {
		if r.Failure == failure {
			n++
		}
	}
	return n
}
