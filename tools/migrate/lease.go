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

// Ours tells whether the holder of the CCM's Lease is our CCM.
func Ours(holder string) bool { return strings.Contains(holder, v1alpha1.CCMHolder) }

// Theirs tells whether the holder of the CCM's Lease is KubeLB's CCM.
func Theirs(holder string) bool { return !Ours(holder) }

const (
	// surelyOver is how long ago a Lease was renewed that nobody holds any more, however wrong clocks are.
	surelyOver = 10 * time.Minute
	// usualDuration is that of a Lease which does not say.
	usualDuration = 15 * time.Second
	lookEvery     = time.Second
)

// Running returns which holder of a Lease of that name works, in words; empty if none does, as far as Leases say. Clocks may differ, so a Lease that
// does not look old is watched for as long as it lasts: a holder renews it within that time.
func Running(ctx context.Context, reader client.Reader, lease string, former func(holder string) bool) (string, error) {
	first, err := held(ctx, reader, lease, former)
	if err != nil {
		return "", err
	}
	wait := time.Duration(0)
	for name, l := range first {
		if l.Spec.RenewTime == nil || time.Since(l.Spec.RenewTime.Time).Abs() > surelyOver {
			delete(first, name)
			continue
		}
		duration := usualDuration
		if s := l.Spec.LeaseDurationSeconds; s != nil {
			duration = time.Duration(*s) * time.Second
		}
		wait = max(wait, duration)
	}
	for end := time.Now().Add(wait); len(first) > 0 && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(lookEvery):
		}
		now, err := held(ctx, reader, lease, former)
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

// held are the Leases of that name, in any namespace, whose holder is a former one.
func held(ctx context.Context, reader client.Reader, name string, former func(string) bool) (map[string]coordinationv1.Lease, error) {
	var list coordinationv1.LeaseList
	if err := reader.List(ctx, &list, client.MatchingFields{"metadata.name": name}); err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	out := map[string]coordinationv1.Lease{}
	for _, l := range list.Items {
		if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" && former(*l.Spec.HolderIdentity) {
			out[client.ObjectKeyFromObject(&l).String()] = l
		}
	}
	return out, nil
}
