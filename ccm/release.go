package ccm

import (
	"context"
	"fmt"
	"io"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// runRelease is kubelb-ccm --release.
func (o *options) runRelease(ctx context.Context, out io.Writer) error {
	config, err := restConfig(o.kubeconfig)
	if err != nil {
		return fmt.Errorf("tenant cluster: %w", err)
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	if err := coordinationv1.AddToScheme(scheme); err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("tenant cluster: %w", err)
	}
	return release(ctx, c, Config{ClassRequired: o.useClass}, time.Now(), out)
}

// release takes KubeLB's marks off the Services of this cluster: the finalizer, the condition and the external addresses. It asks no management cluster.
// A CCM that runs would put them back.
func release(ctx context.Context, c client.Client, config Config, now time.Time, out io.Writer) error {
	if err := refuseRunning(ctx, c, now); err != nil {
		return err
	}
	var services corev1.ServiceList
	if err := c.List(ctx, &services); err != nil {
		return fmt.Errorf("tenant cluster: %w", err)
	}
	r := &serviceReconciler{tenant: c, config: config}
	for i := range services.Items {
		service := &services.Items[i]
		if !config.was(service) {
			continue
		}
		// The status first: without the finalizer the Service may be gone.
		if err := r.clearStatus(ctx, service); err != nil {
			return fmt.Errorf("Service %s: %w", client.ObjectKeyFromObject(service), err)
		}
		if err := r.setFinalizer(ctx, service, false); err != nil {
			return fmt.Errorf("Service %s: %w", client.ObjectKeyFromObject(service), err)
		}
		fmt.Fprintf(out, "Service %s is released.\n", client.ObjectKeyFromObject(service))
	}
	return nil
}

// refuseRunning is an error that names a CCM which holds the Lease of their election, in whatever namespace.
func refuseRunning(ctx context.Context, c client.Client, now time.Time) error {
	var leases coordinationv1.LeaseList
	if err := c.List(ctx, &leases); err != nil {
		return fmt.Errorf("tenant cluster: look whether a kubelb-ccm runs: %w", err)
	}
	for i := range leases.Items {
		lease, s := &leases.Items[i], leases.Items[i].Spec
		if lease.Name != v1alpha1.CCMLease || s.HolderIdentity == nil || *s.HolderIdentity == "" || s.RenewTime == nil || s.LeaseDurationSeconds == nil {
			continue
		}
		if now.Sub(s.RenewTime.Time) <= time.Duration(*s.LeaseDurationSeconds)*time.Second {
			return fmt.Errorf("kubelb-ccm runs as %s: stop it first (Lease %s)", *s.HolderIdentity, client.ObjectKeyFromObject(lease))
		}
	}
	return nil
}
