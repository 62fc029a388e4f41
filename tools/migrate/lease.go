package migrate

import (
	"context"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// HubLease is the Lease of KubeLB's manager on the management cluster.
const HubLease = "19f32e7b.kubelb.k8c.io"

// IsOwnCCM reports whether the holder of the CCM's Lease is this project's CCM.
func IsOwnCCM(holder string) bool { return strings.Contains(holder, v1alpha1.CCMIdentity) }

// IsKubeLBCCM reports whether the holder of the CCM's Lease is KubeLB's own CCM.
func IsKubeLBCCM(holder string) bool { return !IsOwnCCM(holder) }

const (
	// expiredAfter is the age of a renewal after which a Lease counts as expired without being watched. It allows for clocks that differ.
	expiredAfter = 10 * time.Minute
	// defaultDuration is the duration of a Lease without leaseDurationSeconds.
	defaultDuration = 15 * time.Second
	// pollEvery is the interval at which Leases are read.
	pollEvery = time.Second
)

// Running looks for a holder that renews a Lease of this name, in any namespace, and for which isFormer returns true. It returns a message that names the holder and
// the Lease, or an empty string. Because clocks may differ, it watches each Lease that may be valid for the Lease's duration: a running holder renews it in that time.
func Running(ctx context.Context, reader client.Reader, lease string, isFormer func(holder string) bool) (string, error) {
	first, err := heldLeases(ctx, reader, lease, isFormer)
	if err != nil {
		return "", err
	}
	wait := time.Duration(0)
	for name, l := range first {
		if l.Spec.RenewTime == nil || time.Since(l.Spec.RenewTime.Time).Abs() > expiredAfter {
			delete(first, name)
			continue
		}
		duration := defaultDuration
		if s := l.Spec.LeaseDurationSeconds; s != nil {
			duration = time.Duration(*s) * time.Second
		}
		wait = max(wait, duration)
	}
	for end := time.Now().Add(wait); len(first) > 0 && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(pollEvery):
		}
		now, err := heldLeases(ctx, reader, lease, isFormer)
		if err != nil {
			return "", err
		}
		for name, l := range now {
			if before, known := first[name]; !known || !before.Spec.RenewTime.Equal(l.Spec.RenewTime) {
				return fmt.Sprintf("%s holds Lease %s and has just renewed it", *l.Spec.HolderIdentity, name), nil
			}
		}
	}
	return "", nil
}

// heldLeases returns the Leases of this name in all namespaces for whose holder isFormer returns true.
func heldLeases(ctx context.Context, reader client.Reader, name string, isFormer func(string) bool) (map[string]coordinationv1.Lease, error) {
	var list coordinationv1.LeaseList
	if err := reader.List(ctx, &list, client.MatchingFields{"metadata.name": name}); err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	out := map[string]coordinationv1.Lease{}
	for _, l := range list.Items {
		if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" && isFormer(*l.Spec.HolderIdentity) {
			out[client.ObjectKeyFromObject(&l).String()] = l
		}
	}
	return out, nil
}
