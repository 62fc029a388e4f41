// Command drill takes gateways away from under load, on a hub with three of them, and says what clients noticed of it. What it has
// measured it keeps, so that it goes on where it was interrupted. It needs root; all that it makes is in namespaces of its own.
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
	rounds := flags.Int("rounds", 20, "how often each failure is brought about; what --results holds counts")
	backend := flags.String("backend", "nftables", "the gateways' dataplane")
	forwarding := flags.String("forwarding", "nat", "how packets reach the nodes: nat, or direct, on nodes that take the external addresses for their own")
	announce := flags.String("announce", drill.Layer2, "how gateways announce addresses: layer2, to clients on the segment, or bgp, to a router with clients beyond it")
	bird := flags.String("bird", "", "where BIRD is unpacked (tools/unpack.sh router), the router for bgp")
	restarts := flags.Bool("restarts", false, "by bgp: have managers be started again while the router keeps their routes, instead of gateways be taken away")
	file := flags.String("results", "", "a file to which each result is added, a line of JSON each; what is there is not done again")
	only := flags.String("failures", "", "which failures, separated by commas; all without it: "+strings.Join(drill.Options{}.Names(), ", "))
	random := flags.Int("schedules", 0, "run so many random schedules of failures and returns instead, after those that once showed a fault")
	outage := flags.Duration("outage", 0, "have the hub's API stand still for so long instead, at least 10s")
	seed := flags.Uint64("seed", 1, "of the first schedule; the next ones count on from there")
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
		r, err := drill.Away(ctx, o, max(*outage, 10*time.Second))
		fmt.Fprintf(stdout, "the hub's API stood still for %s, and a node died: %s\n", *outage, r)
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
			return fmt.Errorf("--failures: there is no %q: use some of %s", name, strings.Join(o.Names(), ", "))
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
			fmt.Fprintf(stdout, "%s, %d of %d: gap %s, %d of %d requests failed, %d slow, %d connections kept, %d lost, %d strangers lost, two answers for %s\n",
				r.Failure, count(all, r.Failure), *rounds, r.Gap.Round(time.Millisecond), r.Failed, r.Requests, r.Slow, r.Kept, r.Lost, r.Strangers, r.Twice)
			return errors.Join(results.Add(*file, r), broken(o, r))
		})
	}
	fmt.Fprint(stdout, "\n", o.Table(all))
	return err
}

// broken is an error if the result breaks a promise.
func broken(o drill.Options, r drill.Result) error {
	if promises := o.Broken(r); len(promises) > 0 {
		return fmt.Errorf("%s: %s", r.Failure, strings.Join(promises, "; "))
	}
	return nil
}

// schedules runs the courses that once showed a fault, and random ones, from one seed on.
func schedules(ctx context.Context, o drill.Options, first uint64, n int, stdout io.Writer) error {
	seeds := make([]uint64, n)
	for i := range seeds {
		seeds[i] = first + uint64(i)
	}
	if err := cluster.Isolate(); err != nil {
		return err
	}
	return drill.Schedules(ctx, o, seeds, func(s drill.Schedule) error {
		_, err := fmt.Fprintf(stdout, "%s: %d events, two answers for %s at most, one each %s after all was mended\n", s.Name, s.Events, s.Twice, s.Quiet.Round(time.Millisecond))
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
