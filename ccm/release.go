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

// runRelease runs kubelb-ccm --release.
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

// release removes the finalizer, the condition and the external addresses from the Services that this CCM owned. It makes no request to the hub. It refuses
// while a CCM runs, which would set them again.
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
		if !config.wasOwned(service) {
			continue
		}
		// The status comes first: a Service that is being deleted is gone once it has no finalizer.
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
	// leaseCheckInterval is the interval at which --release reads the Leases of the election. A CCM renews its Lease as often.
	leaseCheckInterval = 2 * time.Second
	// defaultLeaseDuration is the duration of a Lease without leaseDurationSeconds. longestLease bounds how long a Lease is watched.
	defaultLeaseDuration, longestLease = 15 * time.Second, 2 * time.Minute
)

// refuseRunning returns an error that names a CCM that runs. A CCM runs if it renews the Lease of its leader election, in any namespace. Each Lease with a
// holder is watched for its duration, by the monotonic clock of this process: the clocks of this host and of the CCM's host may be wrong.
func refuseRunning(ctx context.Context, c client.Client, out io.Writer) error {
	before, err := heldLeases(ctx, c)
	if err != nil || len(before) == 0 {
		return err
	}
	longest := time.Duration(0)
	for _, name := range slices.SortedFunc(maps.Keys(before), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }) {
		lease := before[name]
		longest = max(longest, durationOf(&lease))
		fmt.Fprintf(out, "kubelb-ccm has run as %s (Lease %s). Waiting %s to see whether it still renews this Lease.\n", *lease.Spec.HolderIdentity, name, durationOf(&lease))
	}
	for began := time.Now(); time.Since(began) < longest; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(leaseCheckInterval):
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
			return nil // a CCM that ends releases its Lease
		}
	}
	return nil
}

// heldLeases returns the Leases of leader elections of CCMs that have a holder.
func heldLeases(ctx context.Context, c client.Client) (map[types.NamespacedName]coordinationv1.Lease, error) {
	var leases coordinationv1.LeaseList
	if err := c.List(ctx, &leases); err != nil {
		return nil, fmt.Errorf("tenant cluster: check whether a kubelb-ccm runs: %w", err)
	}
	held := map[types.NamespacedName]coordinationv1.Lease{}
	for _, lease := range leases.Items {
		if s := lease.Spec; lease.Name == v1alpha1.CCMLease && s.HolderIdentity != nil && *s.HolderIdentity != "" && s.RenewTime != nil {
			held[client.ObjectKeyFromObject(&lease)] = lease
		}
	}
	return held, nil
}

func durationOf(lease *coordinationv1.Lease) time.Duration {
	if s := lease.Spec.LeaseDurationSeconds; s != nil && *s > 0 {
		return min(time.Duration(*s)*time.Second, longestLease)
	}
	return defaultLeaseDuration
}

// sameRenewal reports whether nobody has renewed or taken over the Lease between before and now. now has a holder.
func sameRenewal(before, now *coordinationv1.Lease) bool {
	holder := before.Spec.HolderIdentity
	return before.UID == now.UID && holder != nil && *holder == *now.Spec.HolderIdentity && before.Spec.RenewTime.Equal(now.Spec.RenewTime)
}
