package ccm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta/testrestmapper"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/foreign"
)

func TestObjectsWithAFinalizerOfKubeLBsCCMGetAnEvent(t *testing.T) {
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	scheme.AddKnownTypeWithName(v1alpha1.GroupVersion.WithKind("SyncSecret"), &v1alpha1.SyncSecret{})
	ingress := func(name string, finalizers ...string) *networkingv1.Ingress {
		return &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Finalizers: finalizers}}
	}
	hangs := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "hangs", UID: "hangs"}, Status: corev1.NamespaceStatus{Conditions: []corev1.NamespaceCondition{{
		Type: corev1.NamespaceFinalizersRemaining, Status: corev1.ConditionTrue, Message: "Some content in the namespace has finalizers remaining: kubelb.k8c.io/cleanup in 1 resource instances"}}}}
	c := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(testrestmapper.TestOnlyStaticRESTMapper(scheme)).WithObjects(ingress("marked", foreign.Finalizer), ingress("unmarked", "example.com/other"), hangs,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}).
		WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			if list.GetObjectKind().GroupVersionKind().Kind == "SyncSecret" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "syncsecrets"}, "", nil)
			}
			return c.List(ctx, list, options...)
		}}).Build()
	recorder := events.NewFakeRecorder(10)
	s := &foreignFinalizers{reader: c, mapper: c.RESTMapper(), events: recorder, log: logr.Discard(), lastEvents: map[types.UID]time.Time{}}
	now := time.Unix(1_800_000_000, 0)
	told := func() (out []string) {
		for len(recorder.Events) > 0 {
			out = append(out, <-recorder.Events)
		}
		return out
	}
	require.NoError(t, s.search(t.Context(), now), "what may not be read is passed over")
	said := told()
	require.Len(t, said, 2)
	require.Contains(t, said[0], "Warning MarkedByKubeLB this object has the finalizer kubelb.k8c.io/cleanup")
	require.Contains(t, said[0], "'kubelb migrate from-kubelb'")
	require.Contains(t, said[1], "the deletion of this namespace waits for objects with the finalizer kubelb.k8c.io/cleanup")
	require.NoError(t, s.search(t.Context(), now.Add(foreignSearchEvery)))
	require.Empty(t, told(), "an event lasts for an hour")
	require.NoError(t, s.search(t.Context(), now.Add(foreignEventAgain)))
	require.Len(t, told(), 2)
}

// markedIngresses returns a cluster with n Ingresses that have the finalizer, and the search for them.
func markedIngresses(t *testing.T, count int, list func(kind string) error) (*foreignFinalizers, *events.FakeRecorder) {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme)))
	var objects []client.Object
	for i := range count {
		name := fmt.Sprint("i", i)
		objects = append(objects, &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Finalizers: []string{foreign.Finalizer}}})
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(testrestmapper.TestOnlyStaticRESTMapper(scheme)).WithObjects(objects...).
		WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, into client.ObjectList, options ...client.ListOption) error {
			gvk, err := apiutil.GVKForObject(into, scheme)
			if err := errors.Join(err, list(gvk.Kind)); err != nil {
				return err
			}
			return c.List(ctx, into, options...)
		}}).Build()
	recorder := events.NewFakeRecorder(1000)
	return &foreignFinalizers{reader: c, mapper: c.RESTMapper(), events: recorder, log: logr.Discard(), lastEvents: map[types.UID]time.Time{}}, recorder
}

// Ten thousand events at once would overload the API server.
func TestManyMarkedObjectsGetTheirEventsOneBatchAfterAnother(t *testing.T) {
	s, recorder := markedIngresses(t, foreignEventsAtOnce+10, func(string) error { return nil })
	now := time.Unix(1_800_000_000, 0)
	require.NoError(t, s.search(t.Context(), now))
	require.Len(t, recorder.Events, foreignEventsAtOnce)
	require.NoError(t, s.search(t.Context(), now.Add(foreignSearchEvery)))
	require.Len(t, recorder.Events, foreignEventsAtOnce+10, "the others are next")
	require.NoError(t, s.search(t.Context(), now.Add(2*foreignSearchEvery)))
	require.Len(t, recorder.Events, foreignEventsAtOnce+10)
}

func TestReleasedObjectsUseNoMemory(t *testing.T) {
	s, _ := markedIngresses(t, 3, func(string) error { return nil })
	now := time.Unix(1_800_000_000, 0)
	require.NoError(t, s.search(t.Context(), now))
	require.Len(t, s.lastEvents, 3)
	s.reader = fake.NewClientBuilder().WithScheme(s.reader.(client.Client).Scheme()).Build()
	require.NoError(t, s.search(t.Context(), now.Add(foreignEventAgain)))
	require.Empty(t, s.lastEvents)
}

func TestAKindThatCannotBeReadDoesNotHideOtherKinds(t *testing.T) {
	away := errors.New("etcd has no leader")
	s, recorder := markedIngresses(t, 1, func(kind string) error {
		if kind == "NamespaceList" {
			return away
		}
		return nil
	})
	require.ErrorIs(t, s.search(t.Context(), time.Unix(1_800_000_000, 0)), away)
	require.Len(t, recorder.Events, 1)
}
