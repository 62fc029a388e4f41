package ccm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"kubelb.k8c.io/api/v1alpha1"
)

// leaseHub is a management cluster with the CCM's Lease. It refuses renewals with err, if there is one.
type leaseHub struct {
	*fake.Clientset
	l    *lease
	err  error
	logs []string
}

func newLeaseHub(objects ...runtime.Object) *leaseHub {
	h := &leaseHub{Clientset: fake.NewClientset(objects...)}
	h.PrependReactor("patch", "leases", func(clienttesting.Action) (bool, runtime.Object, error) { return h.err != nil, nil, h.err })
	h.l = &lease{leases: h.CoordinationV1().Leases("tenant-a"), identity: "pod", log: funcr.New(func(_, text string) { h.logs = append(h.logs, text) }, funcr.Options{})}
	return h
}

func madeByTheManager() *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: v1alpha1.CCMName, Labels: map[string]string{"a": "b"}}}
}

func TestARenewalChangesOnlyTheSpecOfTheLease(t *testing.T) {
	h := newLeaseHub(madeByTheManager())
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	h.l.renew(t.Context(), now)
	is, err := h.CoordinationV1().Leases("tenant-a").Get(t.Context(), v1alpha1.CCMName, metav1.GetOptions{})
	require.NoError(t, err)
	require.True(t, is.Spec.RenewTime.Time.Equal(now))
	require.Equal(t, "pod", *is.Spec.HolderIdentity)
	require.Equal(t, int32(120), *is.Spec.LeaseDurationSeconds)
	require.Equal(t, map[string]string{"a": "b"}, is.Labels)
	require.Equal(t, renewEvery, h.l.pause)
	require.Empty(t, h.logs)
	require.Equal(t, "patch", h.Actions()[0].GetVerb(), "the rights allow only this")
}

func TestAFailedRenewalIsLoggedOnceForEachKindOfError(t *testing.T) {
	h := newLeaseHub(madeByTheManager())
	resource := schema.GroupResource{Resource: "leases"}
	for i, c := range []struct {
		err  error
		logs int
	}{
		{nil, 0},
		{errors.New("read tcp 10.0.0.1:34567: connection reset"), 1},
		{errors.New("read tcp 10.0.0.1:45678: connection reset"), 1},
		{apierrors.NewUnauthorized("the token has ended"), 2},
		{apierrors.NewUnauthorized("the token has ended"), 2},
		{apierrors.NewNotFound(resource, v1alpha1.CCMName), 3}, // somebody has deleted it
		{nil, 4},
		{nil, 4},
	} {
		h.err = c.err
		h.l.renew(t.Context(), time.Now())
		require.Len(t, h.logs, c.logs, "%d: %v", i, h.logs)
		require.Equal(t, renewEvery, h.l.pause)
	}
}

func TestAMissingLeaseIsTriedSeldomAndNotLogged(t *testing.T) {
	h := newLeaseHub()
	for i := range 10 {
		h.err = nil // there is none
		if i%2 > 0 {
			h.err = apierrors.NewForbidden(schema.GroupResource{Resource: "leases"}, v1alpha1.CCMName, errors.New("no such right"))
		}
		before := h.l.pause
		h.l.renew(t.Context(), time.Now())
		require.GreaterOrEqual(t, h.l.pause, before)
		require.LessOrEqual(t, h.l.pause, renewSeldom)
	}
	require.Equal(t, renewSeldom, h.l.pause)
	require.Empty(t, h.logs)
	_, err := h.CoordinationV1().Leases("tenant-a").Create(t.Context(), madeByTheManager(), metav1.CreateOptions{})
	require.NoError(t, err)
	h.err = nil
	h.l.renew(t.Context(), time.Now())
	require.Equal(t, renewEvery, h.l.pause, "it was upgraded")
}

func TestTheRenewalEndsWithItsContext(t *testing.T) {
	h := newLeaseHub(madeByTheManager())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.l.Start(ctx) }()
	require.Eventually(t, func() bool { return len(h.Actions()) > 0 }, 5*time.Second, time.Millisecond)
	cancel()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on")
	}
	require.Empty(t, h.logs)
}
