// Package inspect describes the state of a management cluster (hub): its problems, why a LoadBalancer is not served, where a packet goes, and whether LoadBalancers
// answer.
package inspect

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/membership"
)

// Snapshot holds the objects of a hub, all read at one time.
type Snapshot struct {
	Gateways      []v1alpha1.Gateway
	Pools         []v1alpha1.AddressPool
	Tenants       []v1alpha1.Tenant
	LoadBalancers []v1alpha1.LoadBalancer
	Addresses     []v1alpha1.Addresses
	// Leases are the Leases of the gateways, by name. Elected is the Lease of the controllers. It is nil without leader election.
	Leases  map[string]coordinationv1.Lease
	Elected *coordinationv1.Lease
	// Namespace is the namespace of the Leases. Now is the time when the objects were read, by the hub's clock if it is known.
	Namespace string
	Now       time.Time
}

// Scheme returns a scheme with the kinds that Read reads.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return scheme, coordinationv1.AddToScheme(scheme)
}

// Read reads all objects. namespace is the namespace of the manager, which has the Leases.
func Read(ctx context.Context, c client.Reader, namespace string) (*Snapshot, error) {
	var (
		gateways  v1alpha1.GatewayList
		pools     v1alpha1.AddressPoolList
		tenants   v1alpha1.TenantList
		lbs       v1alpha1.LoadBalancerList
		addresses v1alpha1.AddressesList
		leases    coordinationv1.LeaseList
	)
	for _, list := range []struct {
		what    string
		into    client.ObjectList
		options []client.ListOption
	}{
		{"Gateways", &gateways, nil}, {"AddressPools", &pools, nil}, {"Tenants", &tenants, nil},
		{"LoadBalancers", &lbs, nil}, {"Addresses", &addresses, nil},
		{"Leases of gateways", &leases, []client.ListOption{client.InNamespace(namespace), client.HasLabels{membership.Label}}},
	} {
		if err := c.List(ctx, list.into, list.options...); err != nil {
			return nil, fmt.Errorf("read %s: %w", list.what, err)
		}
	}
	elected, err := ReadElected(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	h := &Snapshot{Elected: elected, Namespace: namespace, Gateways: gateways.Items, Pools: pools.Items, Tenants: tenants.Items, LoadBalancers: lbs.Items,
		Addresses: addresses.Items, Leases: map[string]coordinationv1.Lease{}, Now: time.Now()}
	for _, lease := range leases.Items {
		h.Leases[lease.Name] = lease
	}
	return h, nil
}

// ReadElected reads the Lease of the controllers. It returns nil if there is none.
func ReadElected(ctx context.Context, c client.Reader, namespace string) (*coordinationv1.Lease, error) {
	var lease coordinationv1.Lease
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: v1alpha1.ControllerLease}, &lease)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the controllers' Lease: %w", err)
	}
	return &lease, nil
}

// leaseExpired reports whether the Lease of a gateway has expired, and how long ago it was renewed. It returns false for a gateway without a Lease, whose state is
// unknown.
func (h *Snapshot) leaseExpired(name string) (since time.Duration, expired bool) {
	lease := h.Leases[name]
	since, left, known := membership.LastRenewal(&lease, h.Now)
	return since.Round(time.Second), known && (left || since > membership.MaxRenewalAge(&lease, membership.SilentAfter))
}

// Outdated returns a warning if no controllers have renewed their Lease for a while, so that the statuses that controllers write may be out of date. It returns an
// empty string if they have, and if that is not known, as without leader election.
func Outdated(elected *coordinationv1.Lease, now time.Time) string {
	if elected == nil {
		return ""
	}
	since, _, known := membership.LastRenewal(elected, now)
	if !known || since <= membership.MaxRenewalAge(elected, membership.SilentAfter) {
		return ""
	}
	return fmt.Sprintf("no kubelb-manager has run the controllers for %s: the status of LoadBalancers, address pools and tenants is that old", since.Round(time.Second))
}
