package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// A hostile tenant, whatever it writes and whatever gateways report about it, does not change the status of other tenants' LoadBalancers, their events, and
// how often they are written. An address that was not requested depends on others (docs/services.md: the next free address of the AddressPool), and is
// ignored here. A property of core tests everything else that depends on requests of tenants (TestNothingOfATenantDependsOnAnotherOnesDoing).
func TestTheStatusOfATenantDoesNotDependOnOtherTenants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		is, without := newCluster(t), newCluster(t)
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			tenant := rapid.SampledFrom([]string{"a", "b", "hostile", "hostile"}).Draw(t, "tenant")
			do := write(t, tenant)
			do(is)
			if tenant != "hostile" {
				do(without)
			}
			is.settle()
			without.settle()
			for _, honest := range []string{"a", "b"} {
				require.Equal(t, without.statusOf(honest), is.statusOf(honest), "the status of tenant %s", honest)
				require.Equal(t, without.told[honest], is.told[honest], "events of tenant %s", honest)
				require.Equal(t, without.writes[honest], is.writes[honest], "how often LoadBalancers of tenant %s are written", honest)
				// status.held is written once for each time that the tenant lists a node that another tenant lists, too.
				require.LessOrEqual(t, is.records[honest], nodesListed*(1+is.lists[honest]), "how often Addresses of tenant %s are written", honest)
			}
		}
	})
}

// cluster is an API server with the controllers.
type cluster struct {
	*rapid.T
	client.Client
	lbs     *loadBalancerReconciler
	targets *targetReconciler
	pools   *poolReconciler
	// By tenant: how often the controllers wrote its LoadBalancers, and its Addresses, how often the tenant wrote the latter, and its events.
	writes, records, lists map[string]int
	told                   map[string][]string
	now                    context.Context
}

func newCluster(t *rapid.T) *cluster {
	c := &cluster{T: t, writes: map[string]int{}, records: map[string]int{}, lists: map[string]int{}, told: map[string][]string{}, now: context.Background()}
	scheme := schemeOf(t, coordinationv1.AddToScheme)
	wide := public()
	wide.Spec.Addresses = []string{"203.0.113.0/24", "2001:db8:f::/112"}
	objects := []client.Object{wide, &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "1000000", AnnouncedResourceVersion: "1000000",
		HostAddresses: []string{"10.9.0.1"}}}}
	for name, network := range map[string]string{"a": "10.1.0.0/16", "b": "10.2.0.0/16", "hostile": "10.0.0.0/8"} {
		tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{network}}}
		objects = append(objects, tenant, nodes(name, strings.Replace(network, "0.0/", "0.1/", 1)))
	}
	c.Client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.LoadBalancer{}, &v1alpha1.Addresses{}, &v1alpha1.AddressPool{}, &v1alpha1.Gateway{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Update: func(ctx context.Context, w client.WithWatch, o client.Object, options ...client.UpdateOption) error {
				c.count(o)
				return w.Update(ctx, o, options...)
			},
			SubResourceUpdate: func(ctx context.Context, w client.Client, sub string, o client.Object, options ...client.SubResourceUpdateOption) error {
				c.count(o)
				return w.SubResource(sub).Update(ctx, o, options...)
			}}).Build()
	numbers, err := newMetrics(nil)
	require.NoError(t, err)
	allocator := &addressAllocator{reader: c.Client}
	filter := &targetFilter{client: c.Client, addresses: allocator}
	changed := make(chan event.GenericEvent, 100)
	c.targets = &targetReconciler{client: c.Client, filter: filter, changed: changed}
	c.lbs = &loadBalancerReconciler{client: c.Client, reader: c.Client, events: eventLog{c}, addresses: allocator, filter: filter, metrics: numbers, poolsChanged: make(chan event.GenericEvent, 1), targetsChanged: changed,
		waiting: waiting{gateway: map[client.ObjectKey]string{}, address: map[client.ObjectKey]bool{}}, throttle: newStatusThrottle()}
	c.pools = &poolReconciler{client: c.Client, addresses: allocator, changed: c.lbs.poolsChanged, metrics: numbers}
	c.settle()
	return c
}

const nodesListed = 4

func (c *cluster) count(o client.Object) {
	tenant := strings.TrimPrefix(o.GetNamespace(), "tenant-")
	if _, is := o.(*v1alpha1.Addresses); is {
		c.records[tenant]++
	} else {
		c.writes[tenant]++
	}
}

// eventLog records events.
type eventLog struct{ *cluster }

// Eventf implements events.EventRecorder.
func (n eventLog) Eventf(about, _ runtime.Object, kind, reason, _, format string, args ...any) {
	o := about.(client.Object)
	tenant := strings.TrimPrefix(o.GetNamespace(), "tenant-")
	n.told[tenant] = append(n.told[tenant], fmt.Sprint(o.GetName(), " ", kind, " ", reason, " ", fmt.Sprintf(format, args...)))
}

var _ events.EventRecorder = eventLog{}

func nodes(tenant string, ips ...string) *v1alpha1.Addresses {
	a := &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-" + tenant, Name: "default"}}
	for _, ip := range ips {
		ip, _, _ = strings.Cut(ip, "/")
		a.Spec.Addresses = append(a.Spec.Addresses, v1alpha1.EndpointAddress{IP: ip})
	}
	return a
}

// write makes a random write of a tenant, or a random report of a gateway about the hostile one.
func write(t *rapid.T, tenant string) func(*cluster) {
	ips := map[string][]string{"a": {"10.1.0.1", "10.1.0.2"}, "b": {"10.2.0.1", "10.2.0.2"}}[tenant]
	if ips == nil {
		ips = []string{"10.1.0.1", "10.2.0.1", "10.1.0.2", "10.9.0.1", "10.3.0.1", "203.0.113.1", "127.0.0.1", "\x1b[31m"}
	}
	what := []string{"LoadBalancer", "LoadBalancer", "gone", "nodes"}
	if tenant == "hostile" {
		what = append(what, "gateway")
	}
	key := client.ObjectKey{Namespace: "tenant-" + tenant, Name: rapid.SampledFrom([]string{"one", "two"}).Draw(t, "name")}
	switch rapid.SampledFrom(what).Draw(t, "what") {
	case "gone":
		return func(c *cluster) {
			lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
			require.NoError(c, client.IgnoreNotFound(c.Delete(c.now, lb)))
		}
	case "nodes":
		a := nodes(tenant, rapid.SliceOfN(rapid.SampledFrom(ips), 0, nodesListed).Draw(t, "nodes")...)
		return func(c *cluster) {
			old := &v1alpha1.Addresses{}
			require.NoError(c, c.Get(c.now, client.ObjectKeyFromObject(a), old))
			old.Spec = *a.Spec.DeepCopy()
			require.NoError(c, c.Client.Update(c.now, old))
			c.lists[tenant]++
			c.records[tenant]-- // the tenant's own write
		}
	case "gateway":
		say := v1alpha1.GatewayStatus{AppliedResourceVersion: "1000000", AnnouncedResourceVersion: "1000000", HostAddresses: []string{"10.9.0.1"}}
		switch rapid.SampledFrom([]string{"failures", "unlisted", "behind"}).Draw(t, "says") {
		case "failures":
			say.Failures = []v1alpha1.GatewayFailure{{LoadBalancer: key.String(), Record: "frontend", Message: "full"}, {Record: "pool hostile/default.v4", Message: "full"}}
		case "unlisted":
			say.Unlisted = []string{key.Namespace}
		case "behind":
			say.Behind = []v1alpha1.GatewayBehind{{Namespace: key.Namespace, ResourceVersion: "0"}}
		}
		return func(c *cluster) {
			var g v1alpha1.Gateway
			require.NoError(c, c.Get(c.now, client.ObjectKey{Name: "g"}, &g))
			g.Status = say
			require.NoError(c, c.Status().Update(c.now, &g))
		}
	}
	spec := specOf(t, tenant, ips)
	return func(c *cluster) {
		lb := &v1alpha1.LoadBalancer{}
		if err := c.Get(c.now, key, lb); err != nil {
			lb = &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Spec: *spec.DeepCopy()}
			require.NoError(c, c.Create(c.now, lb))
			return
		}
		lb.Spec = *spec.DeepCopy()
		require.NoError(c, c.Client.Update(c.now, lb))
		c.writes[tenant]--
	}
}

func specOf(t *rapid.T, tenant string, ips []string) v1alpha1.LoadBalancerSpec {
	spec := v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer}
	n, target := rapid.IntRange(1, 3).Draw(t, "ports"), int32(30000)
	if tenant == "hostile" {
		n, target = rapid.SampledFrom([]int{0, 1, 256}).Draw(t, "many"), rapid.SampledFrom([]int32{30000, 22}).Draw(t, "target")
		if rapid.Bool().Draw(t, "asks") {
			spec.RequestedAddresses = []string{rapid.SampledFrom([]string{"203.0.113.1", "203.0.113.2", "203.0.113.77", "10.1.0.1"}).Draw(t, "requested")}
		}
		for i := range rapid.SampledFrom([]int{0, 128, 129}).Draw(t, "ranges") {
			spec.LoadBalancerSourceRanges = append(spec.LoadBalancerSourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 32).String())
		}
	}
	endpoints := v1alpha1.LoadBalancerEndpoints{}
	if rapid.Bool().Draw(t, "inline") {
		for _, ip := range rapid.SliceOfN(rapid.SampledFrom(ips), 1, 3).Draw(t, "targets") {
			endpoints.Addresses = append(endpoints.Addresses, v1alpha1.EndpointAddress{IP: ip})
		}
	} else {
		endpoints.AddressesReference = &v1alpha1.AddressesReference{Name: "default"}
		if tenant == "hostile" {
			endpoints.AddressesReference.Namespace = rapid.SampledFrom([]string{"", "tenant-a", "kube-system"}).Draw(t, "of")
		}
	}
	for i := range n {
		spec.Ports = append(spec.Ports, v1alpha1.LoadBalancerPort{Port: int32(1 + i)})
		endpoints.Ports = append(endpoints.Ports, v1alpha1.EndpointPort{Port: target})
	}
	spec.Endpoints = []v1alpha1.LoadBalancerEndpoints{endpoints}
	return spec
}

// settle runs each controller until nothing changes any more.
func (c *cluster) settle() {
	for range 4 {
		_, err := c.targets.Reconcile(c.now, reconcile.Request{})
		_, errPools := c.pools.Reconcile(c.now, reconcile.Request{})
		require.NoError(c, errors.Join(err, errPools))
		for len(c.lbs.targetsChanged) > 0 {
			<-c.lbs.targetsChanged
		}
		var lbs v1alpha1.LoadBalancerList
		require.NoError(c, c.List(c.now, &lbs))
		for i := range lbs.Items {
			_, err := c.lbs.Reconcile(c.now, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&lbs.Items[i])})
			require.NoError(c, err)
		}
		select {
		case <-c.lbs.poolsChanged:
		default:
		}
	}
}

// statusOf returns the whole status of a tenant's LoadBalancers, with addresses replaced by their order.
func (c *cluster) statusOf(tenant string) string {
	var lbs v1alpha1.LoadBalancerList
	require.NoError(c, c.List(c.now, &lbs, client.InNamespace("tenant-"+tenant)))
	slices.SortFunc(lbs.Items, func(a, b v1alpha1.LoadBalancer) int { return strings.Compare(a.Name, b.Name) })
	var out strings.Builder
	var addresses []string
	for _, lb := range lbs.Items {
		fmt.Fprintln(&out, lb.Name, lb.Status.Addresses, lb.Status.AdmittedPorts)
		for _, ingress := range lb.Status.LoadBalancer.Ingress {
			fmt.Fprintln(&out, "ingress", ingress.IP, *ingress.IPMode)
		}
		for _, condition := range lb.Status.Conditions {
			fmt.Fprintln(&out, condition.Type, condition.Status, condition.Reason, condition.Message, condition.ObservedGeneration)
		}
		for i, a := range lb.Status.Addresses {
			addresses = append(addresses, a.Address, fmt.Sprintf("<%s %d>", lb.Name, i))
		}
	}
	return strings.NewReplacer(addresses...).Replace(out.String())
}
