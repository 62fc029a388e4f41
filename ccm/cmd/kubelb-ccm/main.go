// Command kubelb-ccm is the cloud controller manager of a tenant cluster. It gives Services of type LoadBalancer their addresses.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"kubelb.k8c.io/ccm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := ccm.Run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "kubelb-ccm:", err)
		os.Exit(1)
	}
}
