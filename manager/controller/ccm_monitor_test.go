package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"kubelb.k8c.io/api/v1alpha1"
)

// ccmTest is a hub with Tenant a and a monitor of its CCM.
type ccmTest struct {
	*tenantHub
	t     *testing.T
	now   time.Time
	asked chan event.GenericEvent
}

func contactHubOf(t *testing.T, more ...client.Object) *ccmTest {
	t.Helper()
	h := &ccmTest{tenantHub: newTenantHub(t, time.Hour, append(more, tenantA())...), t: t, now: time.Date(2026, 1, 2, 12, 0, 0, 0, time.FixedZone("", 3600))}
	h.r.trial.at = time.Now().Add(time.Hour) // this API server counts no objects
	h.begin()
	h.look(t)
	h.after(0)
	return h
}

// begin starts a new process of the controllers.
func (h *ccmTest) begin() {
	numbers, err := newMetrics(nil)
	require.NoError(h.t, err)
	h.asked = make(chan event.GenericEvent, 10)
	h.r.ccms = &ccmMonitor{client: h.Client, reader: h.Client, changed: h.asked, log: logr.Discard(), metrics: numbers}
}

// renew writes a time into the CCM's Lease.
func (h *ccmTest) renew(at time.Time) {
	h.t.Helper()
	h.change(func(s *coordinationv1.LeaseSpec) { s.RenewTime = &metav1.MicroTime{Time: at} })
}

func (h *ccmTest) change(change func(*coordinationv1.LeaseSpec)) {
	h.t.Helper()
	var lease coordinationv1.Lease
	require.NoError(h.t, h.Get(h.t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, &lease))
	change(&lease.Spec)
	require.NoError(h.t, h.Update(h.t.Context(), &lease))
}

// after lets time pass with the due checks, and reconciles the enqueued Tenants. It returns the Tenant's condition, and how often it was written.
func (h *ccmTest) after(passed time.Duration) (says *metav1.Condition, written int) {
	h.t.Helper()
	for end := h.now.Add(passed); ; {
		require.NoError(h.t, h.r.ccms.check(h.t.Context(), h.now))
		for len(h.asked) > 0 {
			before := h.tenant().ResourceVersion
			_, err := h.r.Reconcile(h.t.Context(), requestFor((<-h.asked).Object.GetName()))
			require.NoError(h.t, err)
			if h.tenant().ResourceVersion != before {
				written++
			}
		}
		if !h.now.Before(end) {
			break
		}
		h.now = h.now.Add(min(ccmCheckInterval, end.Sub(h.now)))
	}
	return meta.FindStatusCondition(h.tenant().Status.Conditions, v1alpha1.ConditionConnected), written
}

func (h *ccmTest) tenant() *v1alpha1.Tenant {
	h.t.Helper()
	var tenant v1alpha1.Tenant
	require.NoError(h.t, h.Get(h.t.Context(), client.ObjectKey{Name: "a"}, &tenant))
	return &tenant
}

// shown returns the metric of CCMs: the number of its series, and the value of tenant a.
func (h *ccmTest) shown() (int, float64) {
	n := testutil.CollectAndCount(h.r.ccms.metrics.connected)
	if n == 0 {
		return 0, -1
	}
	return n, testutil.ToFloat64(h.r.ccms.metrics.connected.WithLabelValues("a"))
}

func TestTheConditionOfATenantSaysSinceWhenItsCCMIsSilent(t *testing.T) {
	h := contactHubOf(t)
	says, written := h.after(time.Hour)
	require.Nil(t, says, "the Lease was never renewed, as with KubeLB's own CCM")
	require.Zero(t, written)
	n, _ := h.shown()
	require.Zero(t, n)

	h.renew(h.now)
	says, written = h.after(0)
	require.Equal(t, metav1.ConditionTrue, says.Status)
	require.Equal(t, v1alpha1.ReasonCCMHeard, says.Reason)
	require.Equal(t, 1, written)
	for range 20 {
		h.renew(h.now)
		says, written = h.after(30 * time.Second)
		require.Equal(t, metav1.ConditionTrue, says.Status)
		require.Zero(t, written, "a renewal costs no write")
	}
	_, is := h.shown()
	require.Equal(t, 1.0, is)

	h.renew(h.now)
	_, written = h.after(0)
	require.Zero(t, written)
	since := h.now
	says, _ = h.after(2 * time.Minute)
	require.Equal(t, metav1.ConditionTrue, says.Status, "it may be a moment")
	says, written = h.after(ccmCheckInterval)
	require.Equal(t, metav1.ConditionUnknown, says.Status)
	require.Equal(t, v1alpha1.ReasonCCMSilent, says.Reason)
	require.Equal(t, 1, written)
	message := "the tenant's CCM has not renewed its Lease since " + since.UTC().Format(time.RFC3339) + ": later changes of Services and nodes are not known here"
	require.Equal(t, message, says.Message)
	n, is = h.shown()
	require.Equal(t, 1, n)
	require.Zero(t, is)

	says, written = h.after(time.Hour)
	require.Equal(t, message, says.Message)
	require.Zero(t, written, "the status is written once")
	h.begin()
	says, written = h.after(time.Hour)
	require.Equal(t, message, says.Message, "other controllers know no better")
	require.Zero(t, written)

	h.renew(h.now)
	says, written = h.after(0)
	require.Equal(t, metav1.ConditionTrue, says.Status)
	require.Equal(t, 1, written)
	require.NoError(t, h.Delete(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: v1alpha1.CCMName}}))
	says, _ = h.after(ccmCheckInterval)
	require.Nil(t, says, "after the deletion of the Lease no CCM is expected")
	h.look(t)
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, &coordinationv1.Lease{}), "a CCM may come")
}

// The clock of a tenant cluster may be wrong, or an attacker may control its CCM.
func TestTimesInATenantsLeaseAreNotTrusted(t *testing.T) {
	for name, off := range map[string]time.Duration{"ahead": 1000 * time.Hour, "behind": -1000 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			h := contactHubOf(t)
			h.renew(h.now.Add(off))
			h.after(0)
			for range 10 {
				h.renew(h.now.Add(off))
				says, _ := h.after(30 * time.Second)
				require.Equal(t, metav1.ConditionTrue, says.Status)
			}
			h.begin()
			says, _ := h.after(30 * time.Second)
			require.Equal(t, metav1.ConditionTrue, says.Status, "a new process has a grace period")
			h.renew(h.now.Add(off))
			h.after(0)
			since := h.now
			says, _ = h.after(ccmSilentAfter + ccmCheckInterval)
			require.Equal(t, metav1.ConditionUnknown, says.Status)
			require.Contains(t, says.Message, since.UTC().Format(time.RFC3339))
			h.begin()
			h.after(0)
			h.look(t)
			require.Equal(t, says.Message, meta.FindStatusCondition(h.tenant().Status.Conditions, v1alpha1.ConditionConnected).Message, "the message of the former process stays")
		})
	}
	h := contactHubOf(t)
	h.renew(h.now.Add(1000 * time.Hour))
	h.after(0)
	h.begin()
	began := h.now
	says, _ := h.after(ccmSilentAfter + ccmCheckInterval)
	require.Equal(t, v1alpha1.ReasonCCMSilent, says.Reason, "a time to come lasts no longer for controllers that have not seen it written")
	require.Contains(t, says.Message, began.UTC().Format(time.RFC3339))

	h.renew(h.now)
	h.after(0)
	for seconds, silent := range map[int32]bool{1: false, 1 << 30: true} {
		h.renew(h.now)
		h.change(func(s *coordinationv1.LeaseSpec) { s.LeaseDurationSeconds = &seconds })
		h.after(0)
		says, _ := h.after(map[bool]time.Duration{false: ccmSilentEarliest, true: ccmSilentAfter + ccmCheckInterval}[silent])
		require.Equal(t, silent, says.Status == metav1.ConditionUnknown, "a lease of %d seconds", seconds)
	}
}

// requireNothingSaid requires that the Tenant has no condition Connected, and the metric no series.
func (h *ccmTest) requireNothingSaid(written int, says *metav1.Condition) {
	h.t.Helper()
	require.Nil(h.t, says)
	require.Zero(h.t, written)
	n, _ := h.shown()
	require.Zero(h.t, n)
}

// A Lease may have been restored from a backup, or its CCM may have ended while no controllers ran.
func TestATenantIsNotConnectedBeforeARenewalWasSeen(t *testing.T) {
	for name, age := range map[string]time.Duration{"old": time.Hour, "young": time.Second} {
		for found, begin := range map[string]func(*ccmTest){
			"by another process": func(h *ccmTest) { h.begin() },
			"as another Lease": func(h *ccmTest) {
				var lease coordinationv1.Lease
				require.NoError(h.t, h.Get(h.t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, &lease))
				require.NoError(h.t, h.Delete(h.t.Context(), &lease))
				lease.UID, lease.ResourceVersion = "restored", ""
				require.NoError(h.t, h.Create(h.t.Context(), &lease))
			},
			"after the API was away": func(h *ccmTest) { h.now = h.now.Add(time.Hour) },
		} {
			t.Run(name+", found "+found, func(t *testing.T) {
				h := contactHubOf(t)
				begin(h)
				renewed := h.now.Add(-age)
				h.renew(renewed)
				says, written := h.after(30 * time.Second)
				h.requireNothingSaid(written, says)
				h.renew(h.now)
				says, _ = h.after(ccmCheckInterval)
				require.Equal(t, metav1.ConditionTrue, says.Status, "this renewal was seen")
			})
			t.Run(name+" and never renewed, found "+found, func(t *testing.T) {
				h := contactHubOf(t)
				begin(h)
				renewed := h.now.Add(-age)
				h.renew(renewed)
				says, written := h.after(ccmGracePeriod)
				h.requireNothingSaid(written, says)
				says, _ = h.after(ccmSilentAfter)
				require.Equal(t, metav1.ConditionUnknown, says.Status)
				require.Contains(t, says.Message, renewed.UTC().Format(time.RFC3339), "the time is that of the Lease")
				_, is := h.shown()
				require.Zero(t, is)
			})
		}
	}
}

func TestATenantStaysConnectedWhileOtherControllersWaitForARenewal(t *testing.T) {
	h := contactHubOf(t)
	h.renew(h.now)
	h.after(0)
	h.begin()
	h.now = h.now.Add(time.Hour)
	says, written := h.after(ccmGracePeriod)
	require.Equal(t, metav1.ConditionTrue, says.Status, "the former process saw a renewal")
	require.Zero(t, written)
	_, is := h.shown()
	require.Equal(t, 1.0, is, "the metric agrees with the condition")
	says, _ = h.after(ccmCheckInterval)
	require.Equal(t, metav1.ConditionUnknown, says.Status)
}

func TestASilentCCMStaysSilentUntilItsNextRenewal(t *testing.T) {
	h := contactHubOf(t)
	h.renew(h.now)
	says, _ := h.after(time.Hour)
	silent := says.Message
	h.now = h.now.Add(time.Hour) // an outage of the API
	h.renew(h.now.Add(-30 * time.Minute))
	says, written := h.after(30 * time.Second)
	require.Equal(t, silent, says.Message, "it may have renewed its Lease once, and have ended")
	require.Zero(t, written)
	h.renew(h.now)
	says, _ = h.after(ccmCheckInterval)
	require.Equal(t, metav1.ConditionTrue, says.Status)
}

// If the API is slow, the Leases are read seldom.
func TestASilentCCMIsConnectedAgainHoweverSeldomItsLeaseIsRead(t *testing.T) {
	for _, seldom := range []time.Duration{ccmCheckInterval, 4 * ccmCheckInterval, ccmSilentAfter} {
		h := contactHubOf(t)
		h.renew(h.now)
		says, _ := h.after(time.Hour)
		require.Equal(t, v1alpha1.ReasonCCMSilent, says.Reason)
		h.now = h.now.Add(seldom)
		h.renew(h.now)
		says, _ = h.after(0)
		require.Equal(t, metav1.ConditionTrue, says.Status, "read every %s", seldom)
	}
}

// After an outage, CCMs reach the API no earlier than the manager.
func TestCCMsHaveAGracePeriodAfterAnOutageOfTheAPI(t *testing.T) {
	h := contactHubOf(t)
	h.renew(h.now)
	h.after(ccmCheckInterval)
	away := errors.New("no answer")
	h.r.ccms.reader = interceptor.NewClient(h.Client.(client.WithWatch), interceptor.Funcs{List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error { return away }})
	for range 60 {
		h.now = h.now.Add(ccmCheckInterval)
		require.ErrorIs(t, h.r.ccms.check(t.Context(), h.now), away)
	}
	require.Empty(t, h.asked)
	h.r.ccms.reader = h.Client
	says, written := h.after(ccmGracePeriod - ccmCheckInterval)
	require.Equal(t, metav1.ConditionTrue, says.Status)
	require.Zero(t, written)
	says, _ = h.after(2 * ccmCheckInterval)
	require.Equal(t, metav1.ConditionUnknown, says.Status, "within the grace period the CCM did not renew its Lease")
}

func TestATenantWithoutCredentialsHasNoConditionConnected(t *testing.T) {
	h := contactHubOf(t)
	h.renew(h.now)
	h.after(0)
	tenant := h.tenant()
	tenant.Spec.Revoked = true
	require.NoError(t, h.Update(t.Context(), tenant))
	h.look(t)
	says, written := h.after(time.Hour)
	require.Nil(t, says)
	require.Zero(t, written)
	n, _ := h.shown()
	require.Zero(t, n)
	tenant = h.tenant()
	tenant.Spec.Revoked = false
	require.NoError(t, h.Update(t.Context(), tenant))
	h.look(t)
	says, _ = h.after(ccmGracePeriod + ccmCheckInterval)
	require.Equal(t, v1alpha1.ReasonCCMSilent, says.Reason, "it has not got the new kubeconfig")
}

func TestACheckOfAThousandCCMsTakesFewRequestsAndNoWrite(t *testing.T) {
	const tenants = 1000
	now := time.Now()
	var objects []client.Object
	for i := range tenants {
		name := fmt.Sprintf("t%d", i)
		tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.TenantStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionConnected, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCCMHeard}}}}
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(tenant), Name: v1alpha1.CCMName}, Spec: coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: now}}}
		objects = append(objects, tenant, lease)
	}
	h := contactHubOf(t, objects...)
	requests := 0
	h.r.ccms.reader = interceptor.NewClient(h.Client.(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			requests++
			return inPages(ctx, c, list, options...)
		},
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New("one by one")
		},
	})
	began := time.Now()
	for range 5 {
		require.NoError(t, h.r.ccms.check(t.Context(), now))
	}
	t.Logf("a look at %d tenants takes %s, of which most is the fake API server's", tenants, time.Since(began)/5)
	require.Equal(t, 5*(1+tenants/leasesPerPage), requests, "tenant a has one, too")
	require.Empty(t, h.asked, "nothing is to be written")
	n, _ := h.shown()
	require.Equal(t, tenants, n)
}

// inPages lists in pages, which the fake API server does not do.
func inPages(ctx context.Context, c client.Reader, list client.ObjectList, options ...client.ListOption) error {
	var asked client.ListOptions
	asked.ApplyOptions(options)
	leases := list.(*coordinationv1.LeaseList)
	if err := c.List(ctx, leases, options...); err != nil || asked.Limit == 0 {
		return err
	}
	from, _ := strconv.Atoi(asked.Continue)
	end := min(from+int(asked.Limit), len(leases.Items))
	leases.Continue = ""
	if end < len(leases.Items) {
		leases.Continue = strconv.Itoa(end)
	}
	leases.Items = leases.Items[from:end]
	return nil
}

// T23: a tenant writes its Lease, and the admission policy may be missing.
func TestOnlyNeededFieldsOfLeasesAreKept(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	renewed, seconds := metav1.NewMicroTime(time.Now()), int32(60)
	h := contactHubOf(t, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-b", Name: v1alpha1.CCMName, UID: "uid", Annotations: map[string]string{"a": long},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "x", Operation: metav1.ManagedFieldsOperationApply, APIVersion: "coordination.k8s.io/v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:` + long + `":{}}`)}}},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &long, RenewTime: &renewed, LeaseDurationSeconds: &seconds},
	})
	kept, err := h.r.ccms.leases(t.Context())
	require.NoError(t, err)
	text, err := json.Marshal(kept["tenant-b"])
	require.NoError(t, err)
	require.Less(t, len(text), 300)
	require.Equal(t, "uid", string(kept["tenant-b"].UID))
	require.True(t, renewed.Truncate(time.Microsecond).Equal(kept["tenant-b"].Spec.RenewTime.Time))
	require.Equal(t, seconds, *kept["tenant-b"].Spec.LeaseDurationSeconds)
}
