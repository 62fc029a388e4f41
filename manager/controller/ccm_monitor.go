package controller

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
)

// ccmMonitor finds silent CCMs. A CCM is silent if it does not renew the Lease in its tenant's namespace any more. The tenant writes the times of
// the Lease, so a renewal counts from when this process saw it, by its own clock. A CCM counts as connected once this process saw a renewal, or a
// former process did and the Tenant's condition says so.
type ccmMonitor struct {
	client client.Client
	// reader reads from the API server, without the cache: Leases change too often to be watched for this.
	reader client.Reader
	// changed gets the Tenants whose condition is to change.
	changed chan<- event.GenericEvent
	log     logr.Logger
	metrics *metrics

	// checked is when the Leases were read last. Only check uses it.
	checked time.Time
	mu      sync.Mutex // guards ccms
	// ccms has the state of each CCM, by the tenant's name; nil before the first check.
	ccms map[string]ccmState
}

// ccmState is the last renewal of a CCM's Lease, and when it was first seen.
type ccmState struct {
	lease types.UID
	// renewal is empty if the Lease was never renewed.
	renewal string
	seen    time.Time
	// unobserved: no process saw the renewal happen. It is only known from the Lease, and may be long ago.
	unobserved bool
	// graceEnd is the earliest time at which the CCM counts as silent.
	graceEnd time.Time
	// wasSilent: the CCM was silent before this process started, and is silent until its next renewal.
	wasSilent bool
	silent    bool
}

const (
	// ccmCheckInterval is the interval at which the Leases are read.
	ccmCheckInterval = 10 * time.Second
	// leasesPerPage is the number of Leases in one answer: more than of other objects (pageSize), since they are read often, and a policy keeps them small.
	leasesPerPage = 200
	// ccmSilentAfter is how long after the last renewal a CCM is silent. leaseDurationSeconds may shorten it to ccmSilentEarliest.
	ccmSilentAfter, ccmSilentEarliest = 2 * time.Minute, 20 * time.Second
	// ccmGracePeriod is the time in which CCMs must renew their Leases after a pause in the checks: the API may have been unavailable for CCMs as well.
	ccmGracePeriod = 75 * time.Second
)

// Start checks periodically until ctx ends.
func (c *ccmMonitor) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := c.check(ctx, time.Now()); err != nil && ctx.Err() == nil {
			c.log.Error(err, "cannot check the Leases of tenants' CCMs")
		}
	}, ccmCheckInterval)
	return nil
}

// check reads the Leases, and enqueues the Tenants whose condition is out of date.
func (c *ccmMonitor) check(ctx context.Context, now time.Time) error {
	of, err := c.leases(ctx)
	if err != nil {
		return fmt.Errorf("read the Leases of tenants' CCMs: %w", err)
	}
	var tenants v1alpha1.TenantList
	if err := c.client.List(ctx, &tenants, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read the Tenants: %w", err)
	}
	since := now.Sub(c.checked)
	ccms := map[string]ccmState{}
	for i := range tenants.Items {
		t := &tenants.Items[i]
		if lease := of[namespaceOf(t)]; lease != nil && hasCredentials(t) {
			ccms[t.Name] = c.observe(t, lease, now, since)
		}
	}
	c.checked = now
	c.mu.Lock()
	c.ccms = ccms
	c.mu.Unlock()
	c.updateMetrics(ccms)
	return c.enqueue(ctx, tenants.Items, ccms)
}

// leases returns the Leases of tenants' CCMs, by namespace. Tenants write them, so it keeps only the fields that observe reads, and only one complete
// page at a time.
func (c *ccmMonitor) leases(ctx context.Context) (map[string]*coordinationv1.Lease, error) {
	var of map[string]*coordinationv1.Lease
	err := eachPage(ctx, c.reader, func() *coordinationv1.LeaseList { return &coordinationv1.LeaseList{} }, func() { of = map[string]*coordinationv1.Lease{} }, func(page *coordinationv1.LeaseList) error {
		for _, lease := range page.Items {
			of[lease.Namespace] = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{UID: lease.UID},
				Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: lease.Spec.LeaseDurationSeconds, RenewTime: lease.Spec.RenewTime}}
		}
		return nil
	}, client.MatchingFields{metav1.ObjectNameField: v1alpha1.CCMName}, client.Limit(leasesPerPage))
	return of, err
}

// hasCredentials reports whether the tenant's CCM has credentials.
func hasCredentials(t *v1alpha1.Tenant) bool { return !t.Spec.Revoked && t.DeletionTimestamp == nil }

// observe returns the new state of a tenant's CCM. since is the time since the last check.
func (c *ccmMonitor) observe(t *v1alpha1.Tenant, lease *coordinationv1.Lease, now time.Time, since time.Duration) ccmState {
	is, known := c.ccms[t.Name]
	if lease.Spec.RenewTime == nil {
		return ccmState{lease: lease.UID}
	}
	renewed := lease.Spec.RenewTime.Time
	renewal := strconv.FormatInt(renewed.UnixMicro(), 10)
	switch {
	case !known, is.lease != lease.UID, is.renewal != renewal && since > ccmSilentAfter:
		reason := connectedReason(t)
		is = ccmState{lease: lease.UID, renewal: renewal, seen: earlierTime(renewed, now), unobserved: reason != v1alpha1.ReasonCCMHeard, graceEnd: now.Add(ccmGracePeriod), wasSilent: reason == v1alpha1.ReasonCCMSilent}
	case is.renewal != renewal:
		is = ccmState{lease: lease.UID, renewal: renewal, seen: now}
	case since > 3*ccmCheckInterval && !is.silent:
		is.graceEnd = now.Add(ccmGracePeriod)
	}
	is.silent = is.wasSilent || now.Sub(is.seen) > ccmSilence(lease) && now.After(is.graceEnd)
	return is
}

func earlierTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ccmSilence is how long after the last renewal of this Lease its CCM is silent.
func ccmSilence(lease *coordinationv1.Lease) time.Duration {
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		return min(max(time.Duration(*s)*time.Second, ccmSilentEarliest), ccmSilentAfter)
	}
	return ccmSilentAfter
}

// connectedReason is the reason of the Tenant's condition Connected; empty if it has none.
func connectedReason(t *v1alpha1.Tenant) string {
	if is := meta.FindStatusCondition(t.Status.Conditions, v1alpha1.ConditionConnected); is != nil {
		return is.Reason
	}
	return ""
}

// enqueue enqueues the Tenants whose condition is out of date.
func (c *ccmMonitor) enqueue(ctx context.Context, tenants []v1alpha1.Tenant, ccms map[string]ccmState) error {
	for i := range tenants {
		name := tenants[i].Name
		is := ccms[name]
		if is.isUnknown() || connectedReason(&tenants[i]) == is.reason() {
			continue
		}
		if err := send(ctx, c.changed, &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	return nil
}

// isUnknown reports whether it is not known yet whether the CCM works: it may renew its Lease soon.
func (c ccmState) isUnknown() bool { return c.unobserved && !c.silent }

// reason is the reason of the Tenant's condition, empty for no condition.
func (c ccmState) reason() string {
	switch {
	case c.renewal == "":
		return ""
	case c.silent:
		return v1alpha1.ReasonCCMSilent
	}
	return v1alpha1.ReasonCCMHeard
}

// updateMetrics sets the metric of each CCM whose state is known.
func (c *ccmMonitor) updateMetrics(ccms map[string]ccmState) {
	c.metrics.connected.Reset()
	for name, is := range ccms {
		if is.isUnknown() || is.reason() == "" {
			continue
		}
		n := 1.0
		if is.silent {
			n = 0
		}
		c.metrics.connected.WithLabelValues(name).Set(n)
	}
}

// setCondition sets the condition Connected of a Tenant by the last check. It changes nothing before the first check, and while the state is unknown.
func (c *ccmMonitor) setCondition(t *v1alpha1.Tenant) {
	if c == nil {
		return
	}
	c.mu.Lock()
	is := c.ccms[t.Name]
	checked := c.ccms != nil
	c.mu.Unlock()
	condition := metav1.Condition{Type: v1alpha1.ConditionConnected, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCCMHeard, ObservedGeneration: t.Generation,
		Message: "the tenant's CCM renews its Lease"}
	switch before := meta.FindStatusCondition(t.Status.Conditions, v1alpha1.ConditionConnected); {
	case !hasCredentials(t), checked && is.reason() == "":
		meta.RemoveStatusCondition(&t.Status.Conditions, v1alpha1.ConditionConnected)
		return
	case !checked, is.isUnknown():
		return
	case is.silent && is.wasSilent && before != nil && before.Reason == v1alpha1.ReasonCCMSilent:
		// The former process knew since when.
		condition.Status, condition.Reason, condition.Message = before.Status, before.Reason, before.Message
	case is.silent:
		condition.Status, condition.Reason = metav1.ConditionUnknown, v1alpha1.ReasonCCMSilent
		condition.Message = fmt.Sprintf("the tenant's CCM has not renewed its Lease since %s: later changes of Services and nodes are not known here", is.seen.UTC().Format(time.RFC3339))
	}
	plain.SetCondition(&t.Status.Conditions, condition)
}

// ensureLease creates the Lease that the tenant's CCM renews: tenants may not create Leases. It does not change an existing one.
func (r *tenantReconciler) ensureLease(ctx context.Context, tenant *v1alpha1.Tenant) error {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(tenant), Name: v1alpha1.CCMName, Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByKubeLB}}}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(lease), lease)
	if apierrors.IsNotFound(err) {
		err = r.client.Create(ctx, lease)
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("Lease %s: %w", client.ObjectKeyFromObject(lease), err)
	}
	return nil
}
