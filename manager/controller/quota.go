package controller

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/convert"
)

const (
	// countedWithin is how long the API server's controller manager may take to count the objects of a quota. As long as it has not, nothing
	// is let in: it has not heard of the kind yet, as for half a minute after the CRDs were installed, or does not count at all. It counts
	// what it hears of later only for quotas that are made after that. So it is tried where no tenant is kept out by it.
	countedWithin = 3 * time.Second
	// It is tried again after ever longer pauses.
	countAgainAfter, countAgainAtMost = 10 * time.Second, 10 * time.Minute
	// secretsOfTenant are what a namespace needs, and some to spare: tenants write none.
	secretsOfTenant = 50
	// reasonCounting: the quota is there, and lets nothing in for a moment.
	reasonCounting = "Counting"
)

// trial is of a quota in the manager's own namespace: since when it is waited for, or when it is made again, and the pause before that. One worker of the
// controller tries at a time, for all tenants.
type trial struct {
	mu        sync.Mutex // guards those below, and the quota
	counts    bool
	since, at time.Time
	pause     time.Duration
}

// counts tells whether objects of tenants are counted, and if not, when to look again.
func (r *tenantReconciler) counts(ctx context.Context, now time.Time) (bool, time.Duration, error) {
	t := &r.trial
	t.mu.Lock()
	defer t.mu.Unlock()
	if left := t.at.Sub(now); t.counts || left > 0 {
		return t.counts, left, nil
	}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: v1alpha1.QuotaName + "-trial"}}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(quota), quota)
	if apierrors.IsNotFound(err) {
		quota.Spec.Hard = hardOf(&v1alpha1.Tenant{})
		delete(quota.Spec.Hard, "count/secrets") // the manager's own are not to be bounded
		err = r.client.Create(ctx, quota)
		t.since = now
	}
	if t.since.IsZero() {
		t.since = now
	}
	t.counts = err == nil && counted(quota)
	if err != nil || !t.counts && now.Sub(t.since) < countedWithin {
		return false, time.Second, err
	}
	if !t.counts {
		t.pause = min(2*cmp.Or(t.pause, countAgainAfter/2), countAgainAtMost)
		t.at = now.Add(t.pause)
	}
	return t.counts, t.pause, client.IgnoreNotFound(r.client.Delete(ctx, quota))
}

// bound has the API server refuse more objects than a tenant may have. It tells whether it does so, and when to look again.
func (r *tenantReconciler) bound(ctx context.Context, tenant *v1alpha1.Tenant, now time.Time) (metav1.Condition, time.Duration, error) {
	c := metav1.Condition{Type: v1alpha1.ConditionBounded, Status: metav1.ConditionFalse, Reason: "NotCounted",
		Message: "the management cluster does not count the tenant's objects yet, so that it may make any number of them"}
	failed := func(err error) (metav1.Condition, time.Duration, error) {
		c.Reason, c.Message = "Failed", "ResourceQuota "+v1alpha1.QuotaName+": "+err.Error()
		return c, 0, fmt.Errorf("bound the objects of Tenant %s: %w", tenant.Name, err)
	}
	if counts, again, err := r.counts(ctx, now); err != nil {
		return failed(err)
	} else if !counts {
		return c, again, nil
	}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(tenant), Name: v1alpha1.QuotaName}}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(quota), quota)
	hard := hardOf(tenant)
	switch {
	case apierrors.IsNotFound(err):
		quota.Labels, quota.Spec.Hard = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByKubeLB}, hard
		if err = controllerutil.SetControllerReference(tenant, quota, r.client.Scheme()); err == nil {
			err = r.client.Create(ctx, quota)
		}
	case err == nil && !equality.Semantic.DeepEqual(quota.Spec.Hard, hard):
		quota.Spec.Hard = hard
		err = r.client.Update(ctx, quota)
	}
	switch {
	case err != nil:
		return failed(err)
	case counted(quota):
		return metav1.Condition{Type: v1alpha1.ConditionBounded, Status: metav1.ConditionTrue, Reason: "Counted", Message: "the management cluster counts the tenant's objects"}, 0, nil
	}
	c.Reason, c.Message = reasonCounting, "the management cluster has just begun to count the tenant's objects"
	return c, soonCounted, nil
}

// soonCounted is when a quota is looked at again that has just been made.
const soonCounted = 200 * time.Millisecond

// hardOf are the bounds of a tenant.
func hardOf(tenant *v1alpha1.Tenant) corev1.ResourceList {
	bounds := tenant.Spec.Objects
	lbs, addresses := convert.LoadBalancerObjects(tenant), int32(v1alpha1.DefaultAddressesObjects)
	if bounds.Addresses != nil {
		addresses = *bounds.Addresses
	}
	count := func(kind string) corev1.ResourceName {
		return corev1.ResourceName("count/" + kind + "." + v1alpha1.GroupVersion.Group)
	}
	return corev1.ResourceList{count("loadbalancers"): *resource.NewQuantity(int64(lbs), resource.DecimalSI),
		count("addresses"): *resource.NewQuantity(int64(addresses), resource.DecimalSI), "count/secrets": *resource.NewQuantity(secretsOfTenant, resource.DecimalSI)}
}

// counted tells whether the quota is in effect as it stands.
func counted(quota *corev1.ResourceQuota) bool {
	for name, hard := range quota.Spec.Hard {
		seen, known := quota.Status.Hard[name]
		if _, used := quota.Status.Used[name]; !known || !used || seen.Cmp(hard) != 0 {
			return false
		}
	}
	return true
}
