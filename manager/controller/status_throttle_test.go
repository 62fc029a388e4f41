package controller

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestTheStatusOfAFrequentlyChangedObjectIsWrittenOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lb := recorded("web", 0)
		lb.Finalizers = []string{v1alpha1.CleanupFinalizer}
		lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
			Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
		tenant, gateway := &v1alpha1.Tenant{}, &v1alpha1.Gateway{}
		tenant.Name, gateway.Name = "a", "g"
		writes := 0
		c := fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithObjects(public(), tenant, lb, gateway).WithStatusSubresource(&v1alpha1.LoadBalancer{}).
			WithInterceptorFuncs(interceptor.Funcs{SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, o client.Object, options ...client.SubResourceUpdateOption) error {
				writes++
				return c.SubResource(sub).Update(ctx, o, options...)
			}}).Build()
		r := reconcilerOf(t, c)
		key := client.ObjectKeyFromObject(lb)
		reconcileIt := func() time.Duration {
			result, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
			require.NoError(t, err)
			require.NoError(t, c.Get(t.Context(), key, lb))
			return result.RequeueAfter
		}
		take := func() {
			gateway.Status.AppliedResourceVersion, gateway.Status.AnnouncedResourceVersion = lb.ResourceVersion, lb.ResourceVersion
			require.NoError(t, c.Update(t.Context(), gateway))
		}
		change := func(generation int64) {
			lb.Generation = generation
			lb.Labels = map[string]string{"generation": strconv.FormatInt(generation, 10)}
			require.NoError(t, c.Update(t.Context(), lb))
		}
		for range 5 {
			reconcileIt()
			take()
		}
		require.Equal(t, v1alpha1.ConditionReady, lb.Status.Conditions[len(lb.Status.Conditions)-1].Type)
		reconcileIt()
		time.Sleep(time.Minute)

		writes = 0
		change(2)
		require.Equal(t, time.Second, reconcileIt(), "gateways will say something of it soon")
		require.Zero(t, writes)
		take()
		require.Zero(t, reconcileIt(), "after their reports, the status is written")
		require.Equal(t, 1, writes)
		for _, condition := range lb.Status.Conditions {
			require.EqualValues(t, 2, condition.ObservedGeneration, condition.Type)
		}

		begin := time.Now()
		for generation := int64(3); time.Since(begin) < 10*time.Second; generation++ {
			change(generation)
			again := reconcileIt()
			take()
			require.LessOrEqual(t, again, time.Second)
			require.LessOrEqual(t, reconcileIt(), time.Second)
			time.Sleep(100 * time.Millisecond)
		}
		require.InDelta(t, 10, writes, 2)
		time.Sleep(reconcileIt())
		require.Zero(t, reconcileIt())
		require.Equal(t, lb.Generation, lb.Status.Conditions[0].ObservedGeneration, "the last one is written as well")

		// No other write is delayed.
		writes = 0
		lb.Generation++
		lb.Spec.Type = corev1.ServiceTypeClusterIP
		require.NoError(t, c.Update(t.Context(), lb))
		reconcileIt()
		require.NotZero(t, writes)
	})
}

func TestAStatusWaitsForGatewaysAtMostASecond(t *testing.T) {
	p, key, now := newStatusThrottle(), client.ObjectKey{Name: "web"}, time.Unix(1000, 0)
	require.Equal(t, time.Second, p.delay(key, now, true))
	require.Equal(t, 400*time.Millisecond, p.delay(key, now.Add(600*time.Millisecond), true), "another change does not make it wait longer")
	require.Zero(t, p.delay(key, now.Add(time.Second), true))
	p.written(key, now.Add(time.Second))
	require.Equal(t, 900*time.Millisecond, p.delay(key, now.Add(1100*time.Millisecond), false), "a second since the last write")
	p.clear(key)
	require.Zero(t, p.delay(key, now.Add(5*time.Second), false))
	p.remove(key)
	require.Empty(t, p.byName)
}
