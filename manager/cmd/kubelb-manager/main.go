// Command kubelb-manager runs in the management cluster: it allocates external addresses and forwards their traffic.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"kubelb.k8c.io/manager"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := manager.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	var status manager.ExitStatus
	if errors.As(err, &status) {
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelb-manager:", err)
		os.Exit(1)
	}
}
