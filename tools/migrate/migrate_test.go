package migrate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta/testrestmapper"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/foreign"
)

const other = "example.com/other"

// server is an API server with these objects.
func server(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	return fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(testrestmapper.TestOnlyStaticRESTMapper(scheme)).WithObjects(objects...).WithStatusSubresource(&corev1.Service{}).WithInterceptorFuncs(funcs).
		WithIndex(&coordinationv1.Lease{}, "metadata.name", func(o client.Object) []string { return []string{o.GetName()} }).Build()
}

func named[T client.Object](o T, name string, finalizers ...string) T {
	o.SetNamespace("shop")
	o.SetName(name)
	o.SetUID(types.UID("uid-of-" + name))
	o.SetFinalizers(finalizers)
	return o
}

func going[T client.Object](o T) T {
	at := metav1.NewTime(time.Unix(1_800_000_000, 0))
	o.SetDeletionTimestamp(&at)
	return o
}

func finalizersOf(t *testing.T, c client.Client, o client.Object) []string {
	t.Helper()
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(o), o))
	return o.GetFinalizers()
}

func TestOnlyObjectsWithTheFinalizerOfKubeLBsCCMAreReleased(t *testing.T) {
	c := server(t, interceptor.Funcs{},
		named(&networkingv1.Ingress{}, "marked", other, foreign.Finalizer), named(&networkingv1.Ingress{}, "unmarked", other),
		going(named(&corev1.Secret{}, "going", foreign.Finalizer)), named(&corev1.Service{}, "web", foreign.Finalizer))
	run := func(dry bool) string {
		var out strings.Builder
		m := &Migration{Client: c, DryRun: dry, Out: &out}
		require.NoError(t, m.FromKubeLB(t.Context(), append(foreign.Kinds(), foreign.Secret)))
		require.Equal(t, strings.Count(out.String(), "\n"), m.Released())
		return out.String()
	}
	require.Equal(t, "Ingress shop/marked: finalizer kubelb.k8c.io/cleanup would be removed\n"+
		"Secret shop/going: finalizer kubelb.k8c.io/cleanup would be removed; the object is being deleted, and nothing holds it any more\n", run(true))
	require.Equal(t, []string{other, foreign.Finalizer}, finalizersOf(t, c, named(&networkingv1.Ingress{}, "marked")), "a dry run writes nothing")
	require.Equal(t, "Ingress shop/marked: finalizer kubelb.k8c.io/cleanup removed\n"+
		"Secret shop/going: finalizer kubelb.k8c.io/cleanup removed; the object is being deleted, and nothing holds it any more\n", run(false))
	require.Equal(t, []string{other}, finalizersOf(t, c, named(&networkingv1.Ingress{}, "marked")))
	require.Equal(t, []string{other}, finalizersOf(t, c, named(&networkingv1.Ingress{}, "unmarked")))
	require.Equal(t, []string{foreign.Finalizer}, finalizersOf(t, c, named(&corev1.Service{}, "web")), "the CCM does that itself")
	require.Error(t, c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "going"}, &corev1.Secret{}))
	require.Empty(t, run(false), "a second run has nothing to do")
}

func TestAFailedWriteDoesNotStopTheMigration(t *testing.T) {
	c := server(t, interceptor.Funcs{Patch: func(ctx context.Context, c client.WithWatch, o client.Object, patch client.Patch, options ...client.PatchOption) error {
		if o.GetName() == "a" {
			return errors.New("a webhook refuses it")
		}
		return c.Patch(ctx, o, patch, options...)
	}}, named(&networkingv1.Ingress{}, "a", foreign.Finalizer), named(&networkingv1.Ingress{}, "b", foreign.Finalizer))
	var out strings.Builder
	m := &Migration{Client: c, Out: &out}
	require.ErrorContains(t, m.FromKubeLB(t.Context(), foreign.Kinds()), "shop/a: a webhook refuses it")
	require.Equal(t, "Ingress shop/b: finalizer kubelb.k8c.io/cleanup removed\n", out.String())
}

func TestServicesAlwaysHaveAFinalizerDuringTheHandover(t *testing.T) {
	const ours = v1alpha1.ServiceFinalizer
	ready := func(s *corev1.Service) *corev1.Service {
		s.Status.Conditions = []metav1.Condition{{Type: "example.com/Fine", Status: metav1.ConditionTrue}, {Type: v1alpha1.ServiceCondition, Status: metav1.ConditionTrue}}
		return s
	}
	class := "kubelb"
	early := named(&corev1.Service{}, "early", ours)
	early.Spec.LoadBalancerClass = &class
	c := server(t, interceptor.Funcs{}, early, ready(named(&corev1.Service{}, "web", other, ours)), going(ready(named(&corev1.Service{}, "hangs", ours))),
		named(&corev1.Service{}, "foreign", ours), named(&corev1.Service{}, "plain"))
	run := func(dry bool) (string, []string) {
		var out strings.Builder
		notes, err := (&Migration{Client: c, DryRun: dry, Out: &out}).ToKubeLB(t.Context())
		require.NoError(t, err)
		return out.String(), notes
	}
	out, _ := run(true)
	require.Contains(t, out, "Service shop/web: finalizer service.kubernetes.io/load-balancer-cleanup would be replaced by kubelb.k8c.io/cleanup\n")
	require.Equal(t, []string{other, ours}, finalizersOf(t, c, named(&corev1.Service{}, "web")))
	out, notes := run(false)
	require.Equal(t, `Service shop/early: finalizer service.kubernetes.io/load-balancer-cleanup replaced by kubelb.k8c.io/cleanup
Service shop/hangs: finalizer service.kubernetes.io/load-balancer-cleanup removed; the Service is being deleted, and nothing holds it any more. If LoadBalancer uid-of-hangs is still on the management cluster, delete it there
Service shop/web: finalizer service.kubernetes.io/load-balancer-cleanup replaced by kubelb.k8c.io/cleanup
Service shop/web: condition kubelb.k8c.io/Ready removed
`, out)
	require.Len(t, notes, 1)
	require.Contains(t, notes[0], "Service shop/foreign: not changed")
	web := named(&corev1.Service{}, "web")
	require.Equal(t, []string{other, foreign.Finalizer}, finalizersOf(t, c, web))
	require.Len(t, web.Status.Conditions, 1)
	require.Equal(t, []string{ours}, finalizersOf(t, c, named(&corev1.Service{}, "foreign")))
	out, _ = run(false)
	require.Empty(t, out, "a second run has nothing to do")
}

func TestARunningFormerCCMIsFoundByItsLease(t *testing.T) {
	text := func(s string) *string { return &s }
	seconds := int32(2)
	for name, c := range map[string]struct {
		holder  string
		renewed time.Duration // age of the renewal; each read renews it if renews is true
		renews  bool
		running bool
	}{
		"KubeLB's works":                        {"pod_1", 0, true, true},
		"KubeLB's works, and its clock is slow": {"pod_1", time.Minute, true, true},
		"KubeLB's has just ended":               {"pod_1", 0, false, false},
		"KubeLB's ended long ago":               {"pod_1", time.Hour, false, false},
		"ours works":                            {"pod_" + v1alpha1.CCMIdentity + "_1", 0, true, false},
		"nobody":                                {"", 0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := metav1.NewMicroTime(time.Now().Add(-c.renewed))
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: v1alpha1.CCMLease},
				Spec: coordinationv1.LeaseSpec{HolderIdentity: text(c.holder), RenewTime: &at, LeaseDurationSeconds: &seconds}}
			api := server(t, interceptor.Funcs{List: func(ctx context.Context, api client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
				err := api.List(ctx, list, options...)
				if c.renews {
					at = metav1.NewMicroTime(at.Add(time.Second))
					for i := range list.(*coordinationv1.LeaseList).Items {
						list.(*coordinationv1.LeaseList).Items[i].Spec.RenewTime = at.DeepCopy()
					}
				}
				return err
			}}, lease)
			holder, err := Running(t.Context(), api, v1alpha1.CCMLease, IsKubeLBCCM)
			require.NoError(t, err)
			require.Equal(t, c.running, holder != "", holder)
		})
	}
}
