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
	// countTimeout is how long the controller manager of the hub may take to count the objects of a quota. Until it has, the API server refuses all
	// objects. It does not count a kind that it does not know, for example in the first half minute after the installation of the CRDs, and later
	// counts this kind only for new quotas. So a trial quota in the manager's own namespace, which hinders no tenant, comes first.
	countTimeout = 3 * time.Second
	// The pauses between trials grow from countAgainAfter to countAgainAtMost.
	countAgainAfter, countAgainAtMost = 10 * time.Second, 10 * time.Minute
	// secretsOfTenant is more than a namespace needs: tenants write no Secrets.
	secretsOfTenant = 50
	// reasonCounting: the quota is new, and its objects are not counted yet.
	reasonCounting = "Counting"
)

// trial is the state of the trial quota in the manager's own namespace: since is when the present trial began, at is when the next one begins, after pause.
// One worker of the controller tries at a time, for all tenants.
type trial struct {
	mu        sync.Mutex // guards the fields below, and the quota
	succeeded bool
	since, at time.Time
	pause     time.Duration
}

// objectsAreCounted reports whether the hub counts objects of tenants, and if not, when to call it again.
func (r *tenantReconciler) objectsAreCounted(ctx context.Context, now time.Time) (bool, time.Duration, error) {
	t := &r.trial
	t.mu.Lock()
	defer t.mu.Unlock()
	if left := t.at.Sub(now); t.succeeded || left > 0 {
		return t.succeeded, left, nil
	}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: v1alpha1.QuotaName + "-trial"}}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(quota), quota)
	if apierrors.IsNotFound(err) {
		quota.Spec.Hard = quotaLimits(&v1alpha1.Tenant{})
		delete(quota.Spec.Hard, "count/secrets") // the Secrets of the manager's own namespace stay unbounded
		err = r.client.Create(ctx, quota)
		t.since = now
	}
	if t.since.IsZero() {
		t.since = now
	}
	t.succeeded = err == nil && counted(quota)
	if err != nil || !t.succeeded && now.Sub(t.since) < countTimeout {
		return false, time.Second, err
	}
	if !t.succeeded {
		t.pause = min(2*cmp.Or(t.pause, countAgainAfter/2), countAgainAtMost)
		t.at = now.Add(t.pause)
	}
	return t.succeeded, t.pause, client.IgnoreNotFound(r.client.Delete(ctx, quota))
}

// ensureQuota keeps the ResourceQuota in the tenant's namespace. It returns the condition Bounded, and when to call it again.
func (r *tenantReconciler) ensureQuota(ctx context.Context, tenant *v1alpha1.Tenant, now time.Time) (metav1.Condition, time.Duration, error) {
	c := metav1.Condition{Type: v1alpha1.ConditionBounded, Status: metav1.ConditionFalse, Reason: "NotCounted",
		Message: "the management cluster does not count the tenant's objects yet, so their number is not bounded"}
	failed := func(err error) (metav1.Condition, time.Duration, error) {
		c.Reason, c.Message = "Failed", "ResourceQuota "+v1alpha1.QuotaName+": "+err.Error()
		return c, 0, fmt.Errorf("ResourceQuota for Tenant %s: %w", tenant.Name, err)
	}
	if counts, again, err := r.objectsAreCounted(ctx, now); err != nil {
		return failed(err)
	} else if !counts {
		return c, again, nil
	}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(tenant), Name: v1alpha1.QuotaName}}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(quota), quota)
	hard := quotaLimits(tenant)
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
	c.Reason, c.Message = reasonCounting, "the management cluster begins to count the tenant's objects"
	return c, quotaRecheck, nil
}

// quotaRecheck is the pause before the next look at a new quota.
const quotaRecheck = 200 * time.Millisecond

// quotaLimits returns the bounds of the tenant's objects.
func quotaLimits(tenant *v1alpha1.Tenant) corev1.ResourceList {
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

// counted reports whether all objects of the quota are counted, and its present limits are in effect.
func counted(quota *corev1.ResourceQuota) bool {
	for name, hard := range quota.Spec.Hard {
		seen, known := quota.Status.Hard[name]
		if _, used := quota.Status.Used[name]; !known || !used || seen.Cmp(hard) != 0 {
			return false
		}
	}
	return true
}
