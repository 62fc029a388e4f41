package ccm

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// watched is a cache whose informers watch a fake cluster. Reads go to the cluster itself.
type watched struct {
	informertest.FakeInformers
	ctx     context.Context
	cluster client.WithWatch

	mu        sync.Mutex // guards informers
	informers map[string]toolscache.SharedIndexInformer
	// watching is the number of informers whose watch has begun: an earlier change would be missed.
	watching chan string
}

// GetInformer implements cache.Informers.
func (w *watched) GetInformer(_ context.Context, o client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	gvk, err := apiutil.GVKForObject(o, w.cluster.Scheme())
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if informer, known := w.informers[gvk.Kind]; known {
		return informer, nil
	}
	list := func() client.ObjectList {
		into, err := w.cluster.Scheme().New(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		if err != nil {
			panic(err) // the scheme knows the kind
		}
		return into.(client.ObjectList)
	}
	lists := &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			into := list()
			return into, w.cluster.List(ctx, into)
		},
		WatchFuncWithContext: func(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
			watching, err := w.cluster.Watch(ctx, list())
			if err == nil {
				w.watching <- gvk.Kind
			}
			return watching, err
		},
	}
	informer := toolscache.NewSharedIndexInformer(toolscache.ToListWatcherWithWatchListSemantics(lists, listsFirst{}), o, 0, toolscache.Indexers{})
	w.informers[gvk.Kind] = informer
	go informer.RunWithContext(w.ctx)
	return informer, nil
}

// listsFirst is a client whose watches do not begin with events of existing objects.
type listsFirst struct{}

func (listsFirst) IsWatchListSemanticsUnSupported() bool { return true }

// run runs the controllers on the clusters until the test ends.
func (c *clusters) run() {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	caches := func(to client.WithWatch) *watched {
		return &watched{ctx: ctx, cluster: to, informers: map[string]toolscache.SharedIndexInformer{}, watching: make(chan string, 100)}
	}
	tenant, hub := caches(c.tenant), caches(c.hub)
	nowhere := &rest.Config{Host: "http://127.0.0.1:1"}
	unchecked := true // several tests have a controller of the same name
	mgr, err := ctrl.NewManager(nowhere, ctrl.Options{Scheme: c.tenant.Scheme(), Metrics: server.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Controller: config.Controller{SkipNameValidation: &unchecked},
		NewCache:   func(*rest.Config, cache.Options) (cache.Cache, error) { return tenant, nil },
		NewClient:  func(*rest.Config, client.Options) (client.Client, error) { return c.r.tenant, nil },
	})
	require.NoError(c, err)
	hubCluster, err := cluster.New(nowhere, func(o *cluster.Options) {
		o.Scheme = c.hub.Scheme()
		o.NewCache = func(*rest.Config, cache.Options) (cache.Cache, error) { return hub, nil }
		o.NewClient = func(*rest.Config, client.Options) (client.Client, error) { return c.r.hub, nil }
		o.HTTPClient = http.DefaultClient
	})
	require.NoError(c, err)
	require.NoError(c, mgr.Add(hubCluster))
	require.NoError(c, c.r.setUp(mgr, hubCluster))
	leftOut, err := newLeftOut(prometheus.NewRegistry())
	require.NoError(c, err)
	addresses := &addressesReconciler{tenant: c.r.tenant, hub: c.r.hub, config: c.r.config, events: c.recorder, nodes: c.r.nodes, leftOut: leftOut, reported: map[string]string{}}
	require.NoError(c, addresses.setUp(mgr, hubCluster))
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	c.Cleanup(func() {
		cancel()
		require.NoError(c, <-ended)
	})
	for range 3 {
		<-tenant.watching
	}
	for range 2 {
		<-hub.watching
	}
}

// eventually waits for a condition.
func (c *clusters) eventually(message string, isSo func() bool) {
	c.Helper()
	require.Eventually(c, isSo, 20*time.Second, 10*time.Millisecond, message)
}

// addresses returns the nodes' addresses on the hub.
func (c *clusters) addresses() (ips []string) {
	var a v1alpha1.Addresses
	if c.hub.Get(c.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.DefaultAddressesName}, &a) != nil {
		return nil
	}
	for _, address := range a.Spec.Addresses {
		ips = append(ips, address.IP)
	}
	return ips
}

// Here the controllers run on watches, as in the program: each change causes a reconcile.
func TestRelevantChangesReconcileTheirServices(t *testing.T) {
	n1 := node("n1", "198.51.100.11")
	c := newClusters(t, n1, web(), node("n2", "198.51.100.12"), slice("b", map[string]string{"n2": "ready"}))
	kiosk := local()
	kiosk.Name, kiosk.UID = "kiosk", "uid-of-kiosk"
	require.NoError(t, c.tenant.Create(t.Context(), kiosk))
	c.run()
	c.eventually("the Service is on the hub", func() bool { return c.onHub() != nil })
	c.eventually("the nodes are on the hub", func() bool { return len(c.addresses()) == 2 })

	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.eventually("the Service has its address", func() bool { return len(c.service().Status.LoadBalancer.Ingress) == 1 })

	ofKiosk := slice("a", map[string]string{"n1": "ready"})
	ofKiosk.Labels[discoveryv1.LabelServiceName] = "kiosk"
	local := func() []v1alpha1.EndpointAddress {
		if lb := c.loadBalancer("uid-of-kiosk"); lb != nil && lb.Spec.Endpoints[0].LocalAddresses != nil {
			return *lb.Spec.Endpoints[0].LocalAddresses
		}
		return nil
	}
	require.NoError(t, c.tenant.Create(t.Context(), ofKiosk))
	c.eventually("an EndpointSlice wakes up its Service", func() bool { return len(local()) == 1 })

	require.NoError(t, c.tenant.Get(t.Context(), client.ObjectKeyFromObject(n1), n1))
	n1.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: "true"}
	require.NoError(t, c.tenant.Update(t.Context(), n1))
	c.eventually("a node wakes up Services of policy Local", func() bool { return len(local()) == 0 })
	c.eventually("and the list of nodes", func() bool { return len(c.addresses()) == 1 })

	require.NoError(t, c.hub.Delete(t.Context(), &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: v1alpha1.DefaultAddressesName}}))
	c.eventually("a list that somebody has deleted is made again", func() bool { return len(c.addresses()) == 1 })
	require.NoError(t, c.hub.Delete(t.Context(), c.onHub()))
	c.eventually("so is a LoadBalancer", func() bool { return c.onHub() != nil })

	require.NoError(t, c.tenant.Create(t.Context(), node("odd", "169.254.1.0")))
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.eventually("a node that the hub refuses wakes up Services of all nodes", func() bool { return c.condition().Reason == translate.ReasonNodesLeftOut })

	c.r.contact.set(context.DeadlineExceeded, time.Now())
	c.eventually("a hub that is away wakes up all Services", func() bool { return c.condition().Reason == reasonHubSilent })

	require.NoError(t, c.tenant.Delete(t.Context(), c.service()))
	c.eventually("a Service that leaves is let go", func() bool { return c.onHub() == nil && c.service() == nil })
}

// Nodes send heartbeats every few seconds. Without a filter, each would reconcile thousands of Services.
func TestOnlyRelevantChangesOfNodesCauseAReconcile(t *testing.T) {
	before := node("n1", "198.51.100.11")
	for name, c := range map[string]struct {
		change  func(*corev1.Node)
		matters bool
	}{
		"a heartbeat": {func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, LastHeartbeatTime: metav1.Now()}}
		}, false},
		"the node is not ready": {func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse}}
		}, false},
		"the node is cordoned": {func(n *corev1.Node) { n.Spec.Unschedulable = true }, false},
		"another address":      {func(n *corev1.Node) { n.Status.Addresses[0].Address = "198.51.100.12" }, true},
		"the node is excluded": {func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""} }, true},
		"the autoscaler is about to delete the node": {func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule}}
		}, true},
		"the node is being deleted": {func(n *corev1.Node) { now := metav1.Now(); n.DeletionTimestamp = &now }, true},
	} {
		after := before.DeepCopy()
		c.change(after)
		require.Equal(t, c.matters, nodeMatters.Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after}), name)
	}
	require.True(t, nodeMatters.Create(event.CreateEvent{Object: before}))
	require.True(t, nodeMatters.Delete(event.DeleteEvent{Object: before}))
}

// Objects on the hub and EndpointSlices may be of any program.
func TestAnObjectWithoutAServiceCausesNoReconcile(t *testing.T) {
	require.Empty(t, serviceOfSlice(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "by-hand"}}))
	for _, labels := range []map[string]string{nil, {v1alpha1.LabelOriginName: "web"}, {v1alpha1.LabelOriginNamespace: "shop"}} {
		require.Empty(t, serviceOfLoadBalancer(t.Context(), &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "x", Labels: labels}}))
	}
	c := newClusters(t, web(), web(func(s *corev1.Service) { s.Name, s.Spec.Type = "inside", corev1.ServiceTypeClusterIP }))
	require.Len(t, c.r.allServices(t.Context(), nil), 1)
	c.refuse = func(string) error { return context.DeadlineExceeded }
	require.Empty(t, c.r.allServices(t.Context(), nil))
}
