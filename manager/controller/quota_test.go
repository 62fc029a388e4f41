package controller

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestTheQuotaOfATenantBoundsItsObjects(t *testing.T) {
	scheme := schemeOf(t, corev1.AddToScheme)
	tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "uid"}}
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(tenant).WithStatusSubresource(&corev1.ResourceQuota{}).Build()
	r := &tenantReconciler{client: server, reader: server, namespace: "kubelb"}
	now := time.Now()
	look := func(in time.Duration) (metav1.Condition, time.Duration) {
		c, again, err := r.ensureQuota(t.Context(), tenant, now.Add(in))
		require.NoError(t, err)
		return c, again
	}
	quota := func(namespace, name string) (*corev1.ResourceQuota, error) {
		var q corev1.ResourceQuota
		return &q, server.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &q)
	}
	there := func(namespace, name string) bool {
		_, err := quota(namespace, name)
		require.NoError(t, client.IgnoreNotFound(err))
		return err == nil
	}
	count := func(namespace, name string) {
		q, err := quota(namespace, name)
		require.NoError(t, err)
		q.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard, Used: q.Spec.Hard}
		require.NoError(t, server.Status().Update(t.Context(), q))
	}
	bounds := func() map[string]string {
		q, err := quota("tenant-a", "kubelb")
		require.NoError(t, err)
		out := map[string]string{}
		for name, hard := range q.Spec.Hard {
			out[string(name)] = hard.String()
		}
		return out
	}
	// A quota that is not counted lets no object in. So the trial is in a namespace without tenants, and repeated later.
	c, again := look(0)
	require.Equal(t, "NotCounted", c.Reason)
	require.Equal(t, time.Second, again)
	require.True(t, there("kubelb", "kubelb-trial"))
	c, again = look(countTimeout)
	require.Equal(t, "NotCounted", c.Reason)
	require.Equal(t, countAgainAfter, again)
	require.False(t, there("kubelb", "kubelb-trial"))
	look(countTimeout + time.Second)
	require.False(t, there("kubelb", "kubelb-trial"), "not yet")
	look(countTimeout + countAgainAfter)
	require.True(t, there("kubelb", "kubelb-trial"))
	require.False(t, there("tenant-a", "kubelb"))
	count("kubelb", "kubelb-trial")
	c, _ = look(countTimeout + countAgainAfter + time.Second)
	require.Equal(t, reasonCounting, c.Reason)
	require.False(t, there("kubelb", "kubelb-trial"))
	require.Equal(t, map[string]string{"count/loadbalancers.kubelb.k8c.io": "500", "count/addresses.kubelb.k8c.io": "10", "count/secrets": "50"}, bounds())
	count("tenant-a", "kubelb")
	c, _ = look(countTimeout + countAgainAfter + 2*time.Second)
	require.Equal(t, metav1.ConditionTrue, c.Status)

	// A value that the operator set, and a limit that needs a greater bound.
	number := func(n int32) *int32 { return &n }
	tenant.Spec.Limits.LoadBalancers = number(1000)
	look(time.Minute)
	require.Equal(t, "2k", bounds()["count/loadbalancers.kubelb.k8c.io"])
	tenant.Spec.Objects = v1alpha1.TenantObjects{LoadBalancers: number(7), Addresses: number(1)}
	look(time.Minute)
	require.Equal(t, map[string]string{"count/loadbalancers.kubelb.k8c.io": "7", "count/addresses.kubelb.k8c.io": "1", "count/secrets": "50"}, bounds())
}
