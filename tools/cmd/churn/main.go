// Command churn creates, changes and deletes Services of a tenant for a long time, and reports what grew. It stores the result of each
// round, so that an interrupted run can continue. It needs root. It works in namespaces of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"kubelb.k8c.io/tools/churn"
	"kubelb.k8c.io/tools/cluster"
	"kubelb.k8c.io/tools/results"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env func(string) string, stdout io.Writer) error {
	flags := flag.NewFlagSet("churn", flag.ContinueOnError)
	backend := flags.String("backend", "nftables", "the gateway's dataplane")
	round := flags.Duration("round", 10*time.Minute, "the duration of a round; each round has its own clusters")
	total := flags.Duration("total", time.Hour, "the duration of all rounds together, including those in --results")
	file := flags.String("results", "", "a file to which each round adds its result, as a line of JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o := churn.Options{Kubernetes: env("KUBELB_KUBERNETES"), Products: env("KUBELB_BIN"), Backend: *backend, Duration: *round, Progress: stdout}
	if o.Kubernetes == "" || o.Products == "" {
		return errors.New("run it with make churn")
	}
	done, err := results.Read[churn.Result](*file)
	if err != nil {
		return err
	}
	var lasted time.Duration
	for _, r := range done {
		lasted += r.Lasted
	}
	if lasted >= *total {
		return nil
	}
	if err := cluster.Isolate(); err != nil {
		return err
	}
	for lasted < *total {
		r, err := churn.Run(ctx, o)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%d cycles in %s: %d Services, %d changes, %d requests, %d failed, the long connection broke %d times, %d tries of the gateway, %d false alarms, %d confirmed by a client\nearly: %s\nlate: %s\n",
			r.Cycles, r.Lasted, r.Services, r.Changes, r.Requests, r.Failed, r.Broken, r.Tried, len(r.Alarms), len(r.Confirmed), r.Early, r.Late)
		if err := errors.Join(results.Add(*file, r), r.Err()); err != nil {
			return err
		}
		lasted += r.Lasted
	}
	return nil
}
