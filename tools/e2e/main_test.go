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

// lab is built once and shared by all tests, which each use names of their own.
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

// prepare gives the lab's tenant its pools and starts what is tested.
func prepare(ctx context.Context) error {
	manifest := `
apiVersion: kubelb.k8c.io/v1alpha1
kind: AddressPool
metadata: {name: public}
spec: {addresses: [192.0.2.200-192.0.2.249, "2001:db8:c::200-2001:db8:c::24f"]}
---
apiVersion: kubelb.k8c.io/v1alpha1
kind: Tenant
metadata: {name: a}
spec: {backendCIDRs: [198.51.100.0/24, "2001:db8:1::/64"]}
`
	if _, err := lab.Hub.Kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
		return err
	}
	if err := lab.StartManager(); err != nil {
		return err
	}
	return lab.StartCCM(ctx)
}
