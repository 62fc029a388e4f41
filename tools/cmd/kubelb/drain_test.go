package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/membership"
	"kubelb.k8c.io/tools/inspect"
)

func gatewayNamed(name string, ready, drained metav1.ConditionStatus) *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{AnnouncedAddresses: 3, Conditions: []metav1.Condition{
		{Type: v1alpha1.ConditionReady, Status: ready}, {Type: v1alpha1.ConditionDrained, Status: drained}}}}
}

// crashed is the name of a gateway that renewed its Lease an hour ago.
const crashed = "crashed"

// hubOf returns a hub with gateways. If obedient is true, they drain when spec.draining is set.
func hubOf(t *testing.T, obedient bool, gateways ...*v1alpha1.Gateway) client.Client {
	t.Helper()
	scheme, err := inspect.Scheme()
	require.NoError(t, err)
	b := fake.NewClientBuilder().WithScheme(scheme)
	for _, g := range gateways {
		holder, renewed := g.Name, metav1.NowMicro()
		if g.Name == crashed {
			renewed = metav1.NewMicroTime(time.Now().Add(-time.Hour))
		}
		b = b.WithObjects(g, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: g.Name, Labels: map[string]string{membership.Label: g.Name}},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed}})
	}
	return interceptor.NewClient(b.Build(), interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		err := c.Get(ctx, key, o, opts...)
		if g, is := o.(*v1alpha1.Gateway); is && obedient && g.Spec.Draining {
			g.Status = gatewayNamed("", metav1.ConditionTrue, metav1.ConditionTrue).Status
		}
		return err
	}})
}

func TestDrain(t *testing.T) {
	ready := func(name string) *v1alpha1.Gateway {
		return gatewayNamed(name, metav1.ConditionTrue, metav1.ConditionFalse)
	}
	for name, c := range map[string]struct {
		flags     drainFlags
		obedient  bool
		gateways  []*v1alpha1.Gateway
		out, fail string
	}{
		"one of two":                        {obedient: true, gateways: []*v1alpha1.Gateway{ready("a"), ready("b")}, out: "gateway a answers for no address any more"},
		"the only one":                      {gateways: []*v1alpha1.Gateway{ready("a")}, fail: "there is no other gateway"},
		"the only ready one":                {gateways: []*v1alpha1.Gateway{ready("a"), gatewayNamed("b", metav1.ConditionFalse, metav1.ConditionFalse)}, fail: "no other gateway is ready (b)"},
		"the only one that has not crashed": {gateways: []*v1alpha1.Gateway{ready("a"), ready(crashed)}, fail: "no other gateway is ready (crashed)"},
		"by force":                          {flags: drainFlags{force: true}, obedient: true, gateways: []*v1alpha1.Gateway{ready("a")}, out: "answers for no address any more"},
		"none":                              {gateways: []*v1alpha1.Gateway{ready("b")}, fail: `there is no gateway "a"`},
		"one that does not drain":           {gateways: []*v1alpha1.Gateway{ready("a"), ready("b")}, out: "still answers for 3 addresses", fail: "still answers for 3 addresses after"},
		"undone":                            {flags: drainFlags{undo: true}, gateways: []*v1alpha1.Gateway{ready("a")}, out: "gateway a takes addresses again"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			var out strings.Builder
			c.flags.hub.namespace = "kubelb"
			hub := hubOf(t, c.obedient, c.gateways...)
			err := c.flags.drain(ctx, hub, "a", &out)
			require.Contains(t, out.String(), c.out)
			if c.fail != "" {
				require.ErrorContains(t, err, c.fail)
				return
			}
			require.NoError(t, err)
			var g v1alpha1.Gateway
			require.NoError(t, hub.Get(t.Context(), client.ObjectKey{Name: "a"}, &g))
			require.Equal(t, !c.flags.undo, g.Spec.Draining)
		})
	}
}

// chosenBy returns a pool that chooses gateways by the label rack, and LoadBalancers with addresses of the pool.
func chosenBy(rack string) []client.Object {
	addresses := []v1alpha1.AllocatedAddress{{Address: "203.0.113.1", Pool: "p"}, {Address: "2001:db8::1", Pool: "p"}}
	return []client.Object{
		&v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"203.0.113.0/28", "2001:db8::/124"},
			GatewaySelector: &metav1.LabelSelector{MatchLabels: map[string]string{"rack": rack}}}},
		&v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "one"}, Status: v1alpha1.LoadBalancerStatus{Addresses: addresses}},
		&v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "two"}, Status: v1alpha1.LoadBalancerStatus{Addresses: addresses[:1]}},
	}
}

func TestDrainRefusesIfAPoolInUseChoosesNoOtherWorkingGateway(t *testing.T) {
	in := func(rack, name string, ready metav1.ConditionStatus) *v1alpha1.Gateway {
		g := gatewayNamed(name, ready, metav1.ConditionFalse)
		g.Labels = map[string]string{"rack": rack}
		return g
	}
	ready := metav1.ConditionTrue
	silent := in("1", "b", ready)
	silent.Status.Silent = []v1alpha1.GatewaySilence{{Family: corev1.IPv6Protocol, Message: "no IPv6 on eth1"}}
	none := chosenBy("1")[:1]
	for name, c := range map[string]struct {
		flags    drainFlags
		gateways []*v1alpha1.Gateway
		objects  []client.Object
		fails    []string
	}{
		"the other one is not chosen": {gateways: []*v1alpha1.Gateway{in("1", "a", ready), in("2", "b", ready)}, objects: chosenBy("1"),
			fails: []string{"AddressPool p (203.0.113.1, 2001:db8::1) chooses gateways with rack=1", "'kubelb pools p'", "'kubectl label gateways.kubelb.k8c.io GATEWAY KEY=VALUE'", "--force"}},
		"the other chosen one does not work": {gateways: []*v1alpha1.Gateway{in("1", "a", ready), in("1", "b", metav1.ConditionFalse), in("2", "c", ready)}, objects: chosenBy("1"),
			fails: []string{"AddressPool p (203.0.113.1, 2001:db8::1)"}},
		"the other one announces a family to nobody": {gateways: []*v1alpha1.Gateway{in("1", "a", ready), silent}, objects: chosenBy("1"),
			fails: []string{"AddressPool p (2001:db8::1) chooses gateways with rack=1; these announce to nobody: gateway b: no IPv6 on eth1"}},
		"another one is chosen as well":    {gateways: []*v1alpha1.Gateway{in("1", "a", ready), in("1", "b", ready)}, objects: chosenBy("1")},
		"the drained one is not chosen":    {gateways: []*v1alpha1.Gateway{in("2", "a", ready), in("2", "b", ready)}, objects: chosenBy("1")},
		"the pool has no addresses in use": {gateways: []*v1alpha1.Gateway{in("1", "a", ready), in("2", "b", ready)}, objects: none},
		"it is the only one, by force":     {flags: drainFlags{force: true}, gateways: []*v1alpha1.Gateway{in("1", "a", ready), in("2", "b", ready)}, objects: chosenBy("1")},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			c.flags.hub.namespace = "kubelb"
			hub := hubOf(t, true, c.gateways...)
			for _, o := range c.objects {
				require.NoError(t, hub.Create(t.Context(), o))
			}
			var out strings.Builder
			err := c.flags.drain(ctx, hub, "a", &out)
			if c.fails == nil {
				require.NoError(t, err)
				return
			}
			for _, want := range c.fails {
				require.ErrorContains(t, err, want)
			}
			var g v1alpha1.Gateway
			require.NoError(t, hub.Get(t.Context(), client.ObjectKey{Name: "a"}, &g))
			require.False(t, g.Spec.Draining, "spec.draining is set although the command refused")
		})
	}
}
