package ccm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// While no gateway applies a change, the management cluster keeps the LoadBalancer's condition Ready of the earlier generation.
func TestTheConditionOfAServiceSaysThatItsLastChangeIsNotConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := served("web", nil)
		web.Generation, web.Status.Conditions[0].ObservedGeneration = 4, 4
		tenant := clusterOf(t, web)
		lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "uid-of-web", Generation: 7,
			Labels: map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: "web"}}}
		hub := clusterOf(t, lb)
		r, recorder := reconcilerOf(t, tenant, hub)
		says := func(generation, ready int64, message string) (condition metav1.Condition, again time.Duration) {
			t.Helper()
			require.NoError(t, hub.Get(t.Context(), client.ObjectKeyFromObject(lb), lb))
			lb.Generation, lb.Status.LoadBalancer = generation, web.Status.LoadBalancer
			lb.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: message, ObservedGeneration: ready}}
			require.NoError(t, hub.Update(t.Context(), lb))
			result, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(web)})
			require.NoError(t, err)
			return *meta.FindStatusCondition(get(t, tenant, web).Status.Conditions, conditionReady), result.RequeueAfter
		}
		is, again := says(7, 7, "served")
		require.Equal(t, "served", is.Message)
		require.EqualValues(t, 4, is.ObservedGeneration)
		require.Zero(t, again)

		service := get(t, tenant, web)
		service.Generation = 5
		require.NoError(t, tenant.Update(t.Context(), service))
		is, again = says(8, 7, "served")
		require.Equal(t, "served", is.Message, "the change may be on its way")
		require.EqualValues(t, 4, is.ObservedGeneration, "the condition is of the Service before its change")
		require.Equal(t, unconfirmedAfter, again)
		time.Sleep(again / 2)
		_, again = says(9, 7, "served")
		require.Equal(t, unconfirmedAfter/2, again, "another change is no answer to the first one")
		time.Sleep(again)
		is, again = says(9, 7, "served")
		require.Equal(t, metav1.ConditionTrue, is.Status)
		require.Equal(t, reasonChangeUnconfirmed, is.Reason)
		require.Equal(t, "served, but: as it was before its last change, which the management cluster has not confirmed yet", is.Message)
		require.EqualValues(t, 4, is.ObservedGeneration)
		require.Zero(t, again)
		is, _ = says(9, 7, "served, but: port 81 is left out")
		require.Equal(t, "served, but: port 81 is left out; it is as it was before its last change, which the management cluster has not confirmed yet", is.Message)

		is, _ = says(9, 8, "served")
		require.Equal(t, "served", is.Message, "after a confirmed change, the next one may take a while")
		is, again = says(9, 9, "served")
		require.Equal(t, "served", is.Message)
		require.EqualValues(t, 5, is.ObservedGeneration)
		require.Zero(t, again)
		is, _ = says(9, 0, "served")
		require.EqualValues(t, 5, is.ObservedGeneration, "a manager of KubeLB sets no generation")
		require.Empty(t, r.lag.since)
		require.NotContains(t, all(recorder), "Warning", "traffic goes on")
	})
}
