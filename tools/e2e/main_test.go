package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"kubelb.k8c.io/tools/cluster"
)

// lab is built once and shared by all tests. Each test uses its own names.
var lab *cluster.Lab

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	kubernetes, products := os.Getenv("KUBELB_KUBERNETES"), os.Getenv("KUBELB_BIN")
	if kubernetes == "" || products == "" {
		fmt.Println("end-to-end tests need real clusters: run them with make e2e")
		return 0
	}
	if err := cluster.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	lab, err = cluster.New(ctx, cluster.Options{Kubernetes: kubernetes, Products: products, Backend: os.Getenv("KUBELB_BACKEND"), Progress: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	if err := prepare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// prepare creates the tenant and its address pools, and starts the manager and the CCM.
func prepare(ctx context.Context) error {
	if _, err := lab.Hub.Kubectl(ctx, cluster.PoolManifest+"---\n"+cluster.TenantManifest, "apply", "-f", "-"); err != nil {
		return err
	}
	if err := lab.StartManager(); err != nil {
		return err
	}
	return lab.StartCCM(ctx)
}
