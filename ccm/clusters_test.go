package ccm

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// clusters are a tenant cluster, its hub, and the reconciler of the Services. The test writes as users, operators and the hub's controllers do:
// these writes are neither recorded nor refused.
type clusters struct {
	*testing.T
	tenant, hub client.WithWatch
	r           *serviceReconciler
	recorder    *events.FakeRecorder
	mu          sync.Mutex // guards writes: controllers may run at the same time
	// writes are the CCM's requests that change something, such as "hub: create LoadBalancer uid-of-web", in their order.
	writes []string
	// refuse returns the API servers' error for a request of the CCM, nil if it is accepted. Requests that read are "hub: read LoadBalancer".
	refuse func(request string) error
}

// newClusters returns clusters with these objects in the tenant cluster.
func newClusters(t *testing.T, objects ...client.Object) *clusters {
	t.Helper()
	scheme, err := newScheme()
	require.NoError(t, err)
	require.NoError(t, coordinationv1.AddToScheme(scheme))
	c := &clusters{T: t, refuse: func(string) error { return nil }}
	c.tenant = fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&corev1.Service{}).WithObjects(objects...).Build()
	c.hub = fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.LoadBalancer{}).Build()
	c.restart()
	return c
}

// restart replaces the reconciler by a new one without state.
func (c *clusters) restart() {
	config := Config{HubNamespace: "tenant-a", NodeAddressType: "InternalIP"}
	if c.r != nil {
		config = c.r.config
	}
	c.recorder = events.NewFakeRecorder(100)
	c.r = &serviceReconciler{tenant: c.asCCM("tenant", c.tenant), hub: c.asCCM("hub", c.hub), events: c.recorder, config: config, nodes: newNodesProblem(), contact: newHubContact(time.Now())}
}

// asCCM is the client of the CCM for one of the clusters.
func (c *clusters) asCCM(cluster string, to client.WithWatch) client.WithWatch {
	ask := func(verb string, o client.Object, do func() error) error {
		request := cluster + ": " + verb + " " + c.kindOf(o) + " " + o.GetName()
		if err := c.refuse(request); err != nil {
			return err
		}
		c.mu.Lock()
		c.writes = append(c.writes, request)
		c.mu.Unlock()
		return do()
	}
	read := func(kind string, do func() error) error {
		if err := c.refuse(cluster + ": read " + kind); err != nil {
			return err
		}
		return do()
	}
	return interceptor.NewClient(to, interceptor.Funcs{
		Get: func(ctx context.Context, to client.WithWatch, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
			return read(c.kindOf(o), func() error { return to.Get(ctx, key, o, options...) })
		},
		List: func(ctx context.Context, to client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			gvk, err := apiutil.GVKForObject(list, to.Scheme())
			require.NoError(c, err)
			return read(strings.TrimSuffix(gvk.Kind, "List"), func() error { return to.List(ctx, list, options...) })
		},
		Create: func(ctx context.Context, to client.WithWatch, o client.Object, options ...client.CreateOption) error {
			return ask("create", o, func() error { return to.Create(ctx, o, options...) })
		},
		Update: func(ctx context.Context, to client.WithWatch, o client.Object, options ...client.UpdateOption) error {
			return ask("update", o, func() error { return to.Update(ctx, o, options...) })
		},
		Patch: func(ctx context.Context, to client.WithWatch, o client.Object, patch client.Patch, options ...client.PatchOption) error {
			return ask("patch", o, func() error { return to.Patch(ctx, o, patch, options...) })
		},
		Delete: func(ctx context.Context, to client.WithWatch, o client.Object, options ...client.DeleteOption) error {
			return ask("delete", o, func() error { return to.Delete(ctx, o, options...) })
		},
		SubResourcePatch: func(ctx context.Context, to client.Client, name string, o client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
			return ask("patch "+name+" of", o, func() error { return to.SubResource(name).Patch(ctx, o, patch, options...) })
		},
	})
}

func (c *clusters) kindOf(o client.Object) string {
	gvk, err := apiutil.GVKForObject(o, c.tenant.Scheme())
	require.NoError(c, err)
	return gvk.Kind
}

// web returns the Service shop/web, which no controller has changed yet.
func web(changes ...func(*corev1.Service)) *corev1.Service {
	return served("web", func(s *corev1.Service) {
		s.Finalizers, s.Status = nil, corev1.ServiceStatus{}
		for _, change := range changes {
			change(s)
		}
	})
}

var webKey = client.ObjectKey{Namespace: "shop", Name: "web"}

// reconcile reconciles the Service once.
func (c *clusters) reconcile() (reconcile.Result, error) {
	return c.r.Reconcile(c.Context(), reconcile.Request{NamespacedName: webKey})
}

// settle reconciles the Service once, and requires no error.
func (c *clusters) settle() {
	c.Helper()
	_, err := c.reconcile()
	require.NoError(c, err)
}

// service returns the Service in the tenant cluster, nil if it is gone.
func (c *clusters) service() *corev1.Service {
	c.Helper()
	s := &corev1.Service{}
	err := c.tenant.Get(c.Context(), webKey, s)
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(c, err)
	return s
}

// edit changes the Service as a user does.
func (c *clusters) edit(change func(*corev1.Service)) {
	c.Helper()
	s := c.service()
	change(s)
	require.NoError(c, c.tenant.Update(c.Context(), s))
}

// loadBalancer returns the LoadBalancer of this name on the hub, nil if there is none.
func (c *clusters) loadBalancer(name string) *v1alpha1.LoadBalancer {
	c.Helper()
	lb := &v1alpha1.LoadBalancer{}
	err := c.hub.Get(c.Context(), client.ObjectKey{Namespace: "tenant-a", Name: name}, lb)
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(c, err)
	return lb
}

// onHub returns the Service's LoadBalancer.
func (c *clusters) onHub() *v1alpha1.LoadBalancer {
	c.Helper()
	return c.loadBalancer("uid-of-web")
}

// editOnHub changes the LoadBalancer as another program on the hub does.
func (c *clusters) editOnHub(change func(*v1alpha1.LoadBalancer)) {
	c.Helper()
	lb := c.onHub()
	require.NotNil(c, lb)
	change(lb)
	require.NoError(c, c.hub.Update(c.Context(), lb))
}

// answer writes the status of the LoadBalancer as the hub's controllers do, with these addresses.
func (c *clusters) answer(status metav1.ConditionStatus, reason, message string, addresses ...string) {
	c.Helper()
	lb := c.onHub()
	require.NotNil(c, lb)
	lb.Status.LoadBalancer = ingress(addresses...)
	meta.SetStatusCondition(&lb.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message})
	require.NoError(c, c.hub.Status().Update(c.Context(), lb))
}

// serve makes the Service served with the address 203.0.113.1.
func (c *clusters) serve() {
	c.Helper()
	c.settle()
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.settle()
	require.Equal(c, ingress("203.0.113.1"), c.service().Status.LoadBalancer)
	c.forget()
}

// forget drops the recorded writes and events.
func (c *clusters) forget() {
	c.writes = nil
	all(c.recorder)
}

// condition returns the Service's condition without times.
func (c *clusters) condition() metav1.Condition {
	c.Helper()
	condition := meta.FindStatusCondition(c.service().Status.Conditions, conditionReady)
	require.NotNil(c, condition)
	return metav1.Condition{Type: condition.Type, Status: condition.Status, Reason: condition.Reason, Message: condition.Message}
}

// requireNothing requires that another reconcile writes nothing and emits no event.
func (c *clusters) requireNothing() {
	c.Helper()
	c.forget()
	c.settle()
	require.Empty(c, c.writes)
	require.Empty(c, all(c.recorder))
}

func ingress(addresses ...string) (status corev1.LoadBalancerStatus) {
	for _, a := range addresses {
		status.Ingress = append(status.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	return status
}

// says returns the Service's condition as one text.
func says(status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: conditionReady, Status: status, Reason: reason, Message: message}
}
