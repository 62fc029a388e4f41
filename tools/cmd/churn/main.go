// Command churn has a tenant's Services come, change and go for a long time, and says what grew by it. It keeps the result of each round,
// and goes on where it was interrupted. It needs root; all that it makes is in namespaces of its own.
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
	round := flags.Duration("round", 10*time.Minute, "how long a round lasts, on clusters of its own")
	total := flags.Duration("total", time.Hour, "how long all rounds are to last together; what --results holds counts")
	file := flags.String("results", "", "a file to which the result of each round is added, a line of JSON")
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
		fmt.Fprintf(stdout, "%d cycles in %s: %d Services, %d changes, %d requests, %d failed, the connection that is kept broke %d times, %d tries of the gateway, %d false alarms, %d that a client confirmed\nearly: %s\nlate: %s\n",
			r.Cycles, r.Lasted, r.Services, r.Changes, r.Requests, r.Failed, r.Broken, r.Tried, len(r.Alarms), len(r.Confirmed), r.Early, r.Late)
		if err := errors.Join(results.Add(*file, r), r.Broke()); err != nil {
			return err
		}
		lasted += r.Lasted
	}
	return nil
}
