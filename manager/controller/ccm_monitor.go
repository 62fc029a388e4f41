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

// contacts tells which CCMs are silent. A CCM is silent if it has ceased to renew the Lease in its tenant's namespace. The tenant writes the times of
// the Lease. So a renewal counts from when this process saw it, by its own clock. A CCM counts as heard once a renewal was seen: by this process, or by
// the former one, if the Tenant says so.
type contacts struct {
	client client.Client
	// reader asks the API server itself: Leases change too often to be watched for this.
	reader client.Reader
	// changed is told of the Tenants whose condition is to change.
	changed chan<- event.GenericEvent
	log     logr.Logger
	metrics *metrics

	// looked is when the Leases were read last. It belongs to look.
	looked time.Time
	mu     sync.Mutex // guards heard
	// heard are the tenants' Leases as they were seen last, by the tenants' names; nil before the first look.
	heard map[string]contact
}

// contact is a renewal of a Lease, and when it was first seen.
type contact struct {
	lease types.UID
	// renewal is empty if the Lease was never renewed.
	renewal string
	seen    time.Time
	// unseen: nobody saw the renewal happen. It is known from the Lease alone, and may be long ago.
	unseen bool
	// patience is until when its CCM is not silent.
	patience time.Time
	// distrusted: its CCM was silent before this process saw it, and is until there is another renewal.
	distrusted bool
	silent     bool
}

const (
	// contactInterval is how often the Leases are read.
	contactInterval = 10 * time.Second
	// leasesAtOnce are read by one request: more than of other objects (pageSize), since they are read all the time, and a policy keeps each small.
	leasesAtOnce = 200
	// ccmSilentAfter is for how long a CCM may not renew its Lease, unless leaseDurationSeconds says less, down to ccmSilentEarliest.
	ccmSilentAfter, ccmSilentEarliest = 2 * time.Minute, 20 * time.Second
	// ccmBackWithin is how long CCMs have to renew their Leases after nobody has looked, as when the API was away for them as well.
	ccmBackWithin = 75 * time.Second
)

// Start looks again and again until the context ends.
func (c *contacts) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := c.look(ctx, time.Now()); err != nil && ctx.Err() == nil {
			c.log.Error(err, "look which tenants' CCMs are there")
		}
	}, contactInterval)
	return nil
}

// look reads the Leases, and asks for the Tenants that do not say how it is.
func (c *contacts) look(ctx context.Context, now time.Time) error {
	of, err := c.leases(ctx)
	if err != nil {
		return fmt.Errorf("read the Leases of tenants' CCMs: %w", err)
	}
	var tenants v1alpha1.TenantList
	if err := c.client.List(ctx, &tenants, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read the Tenants: %w", err)
	}
	since := now.Sub(c.looked)
	heard := map[string]contact{}
	for i := range tenants.Items {
		t := &tenants.Items[i]
		if lease := of[namespaceOf(t)]; lease != nil && mayConnect(t) {
			heard[t.Name] = c.judge(t, lease, now, since)
		}
	}
	c.looked = now
	c.mu.Lock()
	c.heard = heard
	c.mu.Unlock()
	c.show(heard)
	return c.tell(ctx, tenants.Items, heard)
}

// leases returns the Leases of tenants' CCMs, by namespace. Tenants write them. So only the fields that judge reads are kept, and only one page at a
// time is in memory whole.
func (c *contacts) leases(ctx context.Context) (map[string]*coordinationv1.Lease, error) {
	var of map[string]*coordinationv1.Lease
	err := eachPage(ctx, c.reader, func() *coordinationv1.LeaseList { return &coordinationv1.LeaseList{} }, func() { of = map[string]*coordinationv1.Lease{} }, func(page *coordinationv1.LeaseList) error {
		for _, lease := range page.Items {
			of[lease.Namespace] = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{UID: lease.UID},
				Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: lease.Spec.LeaseDurationSeconds, RenewTime: lease.Spec.RenewTime}}
		}
		return nil
	}, client.MatchingFields{metav1.ObjectNameField: v1alpha1.CCMName}, client.Limit(leasesAtOnce))
	return of, err
}

// mayConnect tells whether the tenant's CCM has credentials.
func mayConnect(t *v1alpha1.Tenant) bool { return !t.Spec.Revoked && t.DeletionTimestamp == nil }

// judge is the contact with a tenant's CCM as it is now. since is how long ago the Leases were read before.
func (c *contacts) judge(t *v1alpha1.Tenant, lease *coordinationv1.Lease, now time.Time, since time.Duration) contact {
	is, known := c.heard[t.Name]
	if lease.Spec.RenewTime == nil {
		return contact{lease: lease.UID}
	}
	renewed := lease.Spec.RenewTime.Time
	renewal := strconv.FormatInt(renewed.UnixMicro(), 10)
	switch {
	case !known, is.lease != lease.UID, is.renewal != renewal && since > ccmSilentAfter:
		said := saidOfCCM(t)
		is = contact{lease: lease.UID, renewal: renewal, seen: earlier(renewed, now), unseen: said != v1alpha1.ReasonCCMHeard, patience: now.Add(ccmBackWithin), distrusted: said == v1alpha1.ReasonCCMSilent}
	case is.renewal != renewal:
		is = contact{lease: lease.UID, renewal: renewal, seen: now}
	case since > 3*contactInterval && !is.silent:
		is.patience = now.Add(ccmBackWithin)
	}
	is.silent = is.distrusted || now.Sub(is.seen) > ccmSilence(lease) && now.After(is.patience)
	return is
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ccmSilence is for how long a CCM need not renew its Lease.
func ccmSilence(lease *coordinationv1.Lease) time.Duration {
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		return min(max(time.Duration(*s)*time.Second, ccmSilentEarliest), ccmSilentAfter)
	}
	return ccmSilentAfter
}

// saidOfCCM is the reason of the Tenant's condition; empty if it has none.
func saidOfCCM(t *v1alpha1.Tenant) string {
	if is := meta.FindStatusCondition(t.Status.Conditions, v1alpha1.ConditionConnected); is != nil {
		return is.Reason
	}
	return ""
}

// tell asks for the Tenants that do not say how it is.
func (c *contacts) tell(ctx context.Context, tenants []v1alpha1.Tenant, heard map[string]contact) error {
	for i := range tenants {
		name := tenants[i].Name
		is := heard[name]
		if is.isOpen() || saidOfCCM(&tenants[i]) == is.reason() {
			continue
		}
		if err := send(ctx, c.changed, &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	return nil
}

// isOpen tells whether it is not known yet whether the CCM is there: it may renew its Lease in a moment.
func (c contact) isOpen() bool { return c.unseen && !c.silent }

// reason is that of the Tenant's condition, empty for no condition.
func (c contact) reason() string {
	switch {
	case c.renewal == "":
		return ""
	case c.silent:
		return v1alpha1.ReasonCCMSilent
	}
	return v1alpha1.ReasonCCMHeard
}

// show tells Prometheus of the CCMs that are heard, or were.
func (c *contacts) show(heard map[string]contact) {
	c.metrics.connected.Reset()
	for name, is := range heard {
		if is.isOpen() || is.reason() == "" {
			continue
		}
		n := 1.0
		if is.silent {
			n = 0
		}
		c.metrics.connected.WithLabelValues(name).Set(n)
	}
}

// say has the status of a Tenant say whether its CCM is heard, as of the last look. It stays as it is before the first look, and while nobody knows.
func (c *contacts) say(t *v1alpha1.Tenant) {
	if c == nil {
		return
	}
	c.mu.Lock()
	is := c.heard[t.Name]
	looked := c.heard != nil
	c.mu.Unlock()
	condition := metav1.Condition{Type: v1alpha1.ConditionConnected, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCCMHeard, ObservedGeneration: t.Generation,
		Message: "the tenant's CCM renews its Lease"}
	switch before := meta.FindStatusCondition(t.Status.Conditions, v1alpha1.ConditionConnected); {
	case !mayConnect(t), looked && is.reason() == "":
		meta.RemoveStatusCondition(&t.Status.Conditions, v1alpha1.ConditionConnected)
		return
	case !looked, is.isOpen():
		return
	case is.silent && is.distrusted && before != nil && before.Reason == v1alpha1.ReasonCCMSilent:
		// Who has said so knew since when.
		condition.Status, condition.Reason, condition.Message = before.Status, before.Reason, before.Message
	case is.silent:
		condition.Status, condition.Reason = metav1.ConditionUnknown, v1alpha1.ReasonCCMSilent
		condition.Message = fmt.Sprintf("nothing has been heard of its CCM since %s: Services and nodes that changed since are not known here", is.seen.UTC().Format(time.RFC3339))
	}
	plain.SetCondition(&t.Status.Conditions, condition)
}

// ensureLease makes the Lease that the tenant's CCM renews. No tenant may make one. What is in it is the tenant's.
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
