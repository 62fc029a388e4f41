// Command churn has a tenant's Services come, change and go for a long time, and says what grew by it. It keeps the result of each round,
// and goes on where it was interrupted. It needs root; all that it makes is in namespaces of its own.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"kubelb.k8c.io/tools/churn"
	"kubelb.k8c.io/tools/cluster"
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
	results := flags.String("results", "", "a file to which the result of each round is added, a line of JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o := churn.Options{Kubernetes: env("KUBELB_KUBERNETES"), Products: env("KUBELB_BIN"), Backend: *backend, Duration: *round, Progress: stdout}
	if o.Kubernetes == "" || o.Products == "" {
		return errors.New("run it with make churn")
	}
	lasted, err := lastedSoFar(*results)
	if err != nil || lasted >= *total {
		return err
	}
	if err := cluster.Isolate(); err != nil {
		return err
	}
	for lasted < *total {
		r, err := churn.Run(ctx, o)
		if err != nil {
			return err
		}
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s\n", text)
		if err := errors.Join(add(*results, text), r.Broke()); err != nil {
			return err
		}
		lasted += r.Lasted
	}
	return nil
}

// lastedSoFar is how long the rounds lasted that are in the file.
func lastedSoFar(path string) (lasted time.Duration, err error) {
	if path == "" {
		return 0, nil
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var r churn.Result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		lasted += r.Lasted
	}
	return lasted, lines.Err()
}

func add(path string, line []byte) error {
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(append(line, '\n'))
	return errors.Join(err, file.Close())
}
