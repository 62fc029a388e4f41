package ccm

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
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
	return release(ctx, c, Config{ClassRequired: o.useClass}, out)
}

// release takes KubeLB's marks off the Services of this cluster: the finalizer, the condition and the external addresses. It asks no management cluster.
// A CCM that runs would put them back.
func release(ctx context.Context, c client.Client, config Config, out io.Writer) error {
	if err := refuseRunning(ctx, c, out); err != nil {
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

const (
	// lookAtLeases is how often --release looks whether a CCM renews the Lease of the election: as often as a CCM that runs does.
	lookAtLeases = 2 * time.Second
	// leaseUnlessSaid is how long a Lease lasts that does not say so, and longestLease how long one is watched at most.
	leaseUnlessSaid, longestLease = 15 * time.Second, 2 * time.Minute
)

// refuseRunning is an error that names a CCM which renews the Lease of their election, in whatever namespace. It watches Leases that somebody holds for as
// long as they last, by the own monotonic clock: the clock of this host, or of the CCM's, may be wrong.
func refuseRunning(ctx context.Context, c client.Client, out io.Writer) error {
	before, err := heldLeases(ctx, c)
	if err != nil || len(before) == 0 {
		return err
	}
	lasts := time.Duration(0)
	for _, name := range slices.SortedFunc(maps.Keys(before), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }) {
		lease := before[name]
		lasts = max(lasts, lastsFor(&lease))
		fmt.Fprintf(out, "kubelb-ccm has run as %s (Lease %s). Waiting %s to see whether it still renews this Lease.\n", *lease.Spec.HolderIdentity, name, lastsFor(&lease))
	}
	for began := time.Now(); time.Since(began) < lasts; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookAtLeases):
		}
		now, err := heldLeases(ctx, c)
		if err != nil {
			return err
		}
		for name, lease := range now {
			if was := before[name]; !sameRenewal(&was, &lease) {
				return fmt.Errorf("kubelb-ccm runs as %s: stop it first (Lease %s)", *lease.Spec.HolderIdentity, name)
			}
		}
		if len(now) == 0 {
			return nil // given back
		}
	}
	return nil
}

// heldLeases are the Leases of CCMs' elections that somebody holds.
func heldLeases(ctx context.Context, c client.Client) (map[types.NamespacedName]coordinationv1.Lease, error) {
	var leases coordinationv1.LeaseList
	if err := c.List(ctx, &leases); err != nil {
		return nil, fmt.Errorf("tenant cluster: look whether a kubelb-ccm runs: %w", err)
	}
	held := map[types.NamespacedName]coordinationv1.Lease{}
	for _, lease := range leases.Items {
		if s := lease.Spec; lease.Name == v1alpha1.CCMLease && s.HolderIdentity != nil && *s.HolderIdentity != "" && s.RenewTime != nil {
			held[client.ObjectKeyFromObject(&lease)] = lease
		}
	}
	return held, nil
}

func lastsFor(lease *coordinationv1.Lease) time.Duration {
	if s := lease.Spec.LeaseDurationSeconds; s != nil && *s > 0 {
		return min(time.Duration(*s)*time.Second, longestLease)
	}
	return leaseUnlessSaid
}

// sameRenewal tells whether nobody has renewed or taken a Lease since. now is held by somebody.
func sameRenewal(before, now *coordinationv1.Lease) bool {
	holder := before.Spec.HolderIdentity
	return before.UID == now.UID && holder != nil && *holder == *now.Spec.HolderIdentity && before.Spec.RenewTime.Equal(now.Spec.RenewTime)
}
