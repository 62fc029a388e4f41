package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// refusedIn returns the refused targets of each list of a namespace, sorted by name.
func (f *targetFilter) refusedIn(namespace string) string {
	var texts []string
	for _, l := range f.lists.byNamespace[namespace] {
		texts = append(texts, l.refused)
	}
	slices.Sort(texts)
	return strings.Join(texts, "")
}

// filterTest is an API server with a targetReconciler, and counts how often each list is read.
type filterTest struct {
	client.Client
	r       *targetReconciler
	read    []string
	changed chan event.GenericEvent
}

func newFilterTest(t require.TestingT, objects ...client.Object) *filterTest {
	f := &filterTest{changed: make(chan event.GenericEvent, 1000)}
	server := fake.NewClientBuilder().WithScheme(schemeOf(t)).WithStatusSubresource(&v1alpha1.Addresses{}).WithObjects(objects...).Build()
	f.Client = server
	counted := interceptor.NewClient(server, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
		if len(options) > 0 { // reads before a write have no options
			f.read = append(f.read, key.String())
		}
		return c.Get(ctx, key, o, options...)
	}})
	f.r = &targetReconciler{client: counted, filter: &targetFilter{client: server, addresses: &addressAllocator{reader: server}}, changed: f.changed}
	return f
}

// reconcileOnce reconciles once, and reports whether more lists are queued.
func (f *filterTest) reconcileOnce(t require.TestingT) bool {
	f.read = nil
	result, err := f.r.Reconcile(context.Background(), reconcile.Request{})
	require.NoError(t, err)
	return result.RequeueAfter > 0
}

func (f *filterTest) settle(t require.TestingT) {
	for f.reconcileOnce(t) || len(f.read) > 0 {
	}
}

// enqueued returns the enqueued LoadBalancers.
func (f *filterTest) enqueued() (names []string) {
	for len(f.changed) > 0 {
		o := (<-f.changed).Object
		names = append(names, o.GetNamespace()+"/"+o.GetName())
	}
	return names
}

func tenantIn(name, network string) *v1alpha1.Tenant {
	return &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{network}}}
}

func withTargets(tenant, name string, ips ...string) *v1alpha1.LoadBalancer {
	return &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-" + tenant, Name: name},
		Spec: v1alpha1.LoadBalancerSpec{Endpoints: []v1alpha1.LoadBalancerEndpoints{{Addresses: nodes(tenant, ips...).Spec.Addresses}}}}
}

// Tenant many has 60 LoadBalancers with targets of their own, 198.51.100.N and .200, in the network of tenant one.
func manyAndOne() []client.Object {
	objects := []client.Object{tenantIn("many", "198.51.100.0/24"), tenantIn("one", "198.51.100.0/24"), nodes("one", "198.51.100.101"), withTargets("one", "web", "198.51.100.101")}
	for i := range 60 {
		objects = append(objects, withTargets("many", fmt.Sprint(i), fmt.Sprintf("198.51.100.%d", i+1), "198.51.100.200"))
	}
	return objects
}

func TestAChangeOfTargetsEvaluatesOnlyAffectedLists(t *testing.T) {
	f := newFilterTest(t, manyAndOne()...)
	f.settle(t)
	require.Empty(t, f.enqueued(), "at the start all LoadBalancers are reconciled anyway")
	f.reconcileOnce(t)
	require.Empty(t, f.read, "nothing has changed")

	var lb v1alpha1.LoadBalancer
	require.NoError(t, f.Get(t.Context(), client.ObjectKey{Namespace: "tenant-many", Name: "7"}, &lb))
	lb.Labels = map[string]string{"more": "x"}
	require.NoError(t, f.Update(t.Context(), &lb))
	f.reconcileOnce(t)
	require.Empty(t, f.read, "it targets what it did before")
	lb.Spec.Endpoints[0].Addresses[0].IP = "192.0.2.1"
	require.NoError(t, f.Update(t.Context(), &lb))
	f.reconcileOnce(t)
	require.Equal(t, []string{"tenant-many/7"}, f.read)
	require.Equal(t, []string{"tenant-many/7"}, f.enqueued(), "another target is refused")

	var list v1alpha1.Addresses
	require.NoError(t, f.Get(t.Context(), client.ObjectKey{Namespace: "tenant-one", Name: "default"}, &list))
	list.Spec.Addresses[0].IP = "198.51.100.31"
	require.NoError(t, f.Update(t.Context(), &list))
	f.reconcileOnce(t)
	require.ElementsMatch(t, []string{"tenant-one/default", "tenant-many/30"}, f.read, "the node that many targets there is another tenant's now")
	require.Equal(t, []string{"tenant-many/30"}, f.enqueued())
	require.Contains(t, f.r.filter.refusedIn("tenant-many"), "198.51.100.31 is another tenant's node")
	f.settle(t)
	require.Empty(t, f.enqueued())
}

func TestTenantsTakeTurnsInTheEvaluationOfTargets(t *testing.T) {
	f := newFilterTest(t, manyAndOne()...)
	f.settle(t)
	gateway := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{HostAddresses: []string{"198.51.100.200", "198.51.100.101"}}}
	require.NoError(t, f.Create(t.Context(), gateway))
	require.True(t, f.reconcileOnce(t), "more is to be done")
	require.Len(t, f.read, listsPerTurn+2)
	require.Contains(t, f.read, "tenant-one/web")
	require.Contains(t, f.read, "tenant-one/default")
	require.True(t, f.reconcileOnce(t))
	require.False(t, f.reconcileOnce(t))
	require.Len(t, f.enqueued(), 60+2)
}

// The state of each list is the same as in a new process that has seen none of the changes.
func TestRefusalsDoNotDependOnFormerStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFilterTest(t, tenantIn("a", "198.51.100.0/24"), tenantIn("b", "198.51.100.0/24"), tenantIn("c", "198.51.100.0/24"))
		ip := rapid.SampledFrom([]string{"198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.101.1", "192.0.2.1", "nonsense"})
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		for step := range rapid.IntRange(1, 15).Draw(t, "steps") {
			tenant, ips := names.Draw(t, "tenant"), rapid.SliceOfN(ip, 0, 3).Draw(t, "ips")
			o := map[string]client.Object{"nodes": nodes(tenant, ips...), "targets": withTargets(tenant, "web", ips...),
				"tenant": tenantIn(tenant, rapid.SampledFrom([]string{"198.51.100.0/24", "198.51.0.0/16", "192.0.2.0/24"}).Draw(t, "network")),
				"host":   &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{HostAddresses: ips}}}[rapid.SampledFrom([]string{"nodes", "targets", "tenant", "host"}).Draw(t, "what")]
			before := o.DeepCopyObject().(client.Object)
			if f.Get(context.Background(), client.ObjectKeyFromObject(o), before) == nil {
				require.NoError(t, f.Delete(context.Background(), before))
			}
			if rapid.IntRange(0, 4).Draw(t, "gone") > 0 {
				o.SetUID(types.UID(fmt.Sprint(step)))
				require.NoError(t, f.Create(context.Background(), o))
			}
			if rapid.Bool().Draw(t, "settles") {
				f.settle(t)
			}
		}
		f.settle(t)
		anew := newFilterTest(t)
		anew.r.client, anew.r.filter.client = f.r.client, f.Client
		for anew.reconcileOnce(t) {
		}
		for _, tenant := range []string{"a", "b", "c"} {
			require.Equal(t, anew.r.filter.refusedIn("tenant-"+tenant), f.r.filter.refusedIn("tenant-"+tenant))
		}
	})
}

func TestTargetsAreConvertedOneListAtATime(t *testing.T) {
	lbs := make([]v1alpha1.LoadBalancer, 50)
	for i := range lbs {
		lbs[i] = largest(i)
	}
	before, live := heap(), int64(0)
	n := 0
	for list := range targetsOf(nil, lbs) {
		require.Len(t, list.List, 5000)
		if n++; n == len(lbs) {
			live = heap() - before
		}
	}
	require.Equal(t, len(lbs), n)
	require.Less(t, live, int64(1<<20), "50 of 160 kB each are not there at once")
}
