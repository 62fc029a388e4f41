package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

// fleet has three gateways, a hub, two tenant clusters and clients. The addresses of the tenants' Services spread over the gateways.
type fleet struct {
	options   Options
	lab       *cluster.Lab
	tenants   []*tenant
	hub       client.Client
	gateways  []*gateway
	addresses []netip.Addr
	// bgp means that the router learns routes to addresses by BGP. Else it uses ARP and NDP, like clients on the segment.
	bgp bool
	// router connects the segment with a client behind it.
	router *cluster.Router
}

const (
	services   = 12
	servedPort = 80
	// timeout is how long the fleet may take to settle.
	timeout = 60 * time.Second
)

func newFleet(ctx context.Context, o Options) (_ *fleet, err error) {
	lab, err := cluster.New(ctx, cluster.Options{Kubernetes: o.Kubernetes, Products: o.Products, Backend: o.Backend, Progress: o.Progress, HubOnly: true})
	if err != nil {
		return nil, err
	}
	f := &fleet{lab: lab, options: o, bgp: o.Announce == BGP}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.logs(), f.close())
		}
	}()
	if err := f.connect(); err != nil {
		return nil, err
	}
	if err := lab.StartController(); err != nil {
		return nil, err
	}
	for i, name := range []string{"one", "two"} {
		t, err := f.onboard(ctx, name, 3+i)
		if err != nil {
			return nil, fmt.Errorf("tenant %s: %w", name, err)
		}
		f.tenants = append(f.tenants, t)
	}
	f.gateways = []*gateway{{name: "gateway", host: lab.Gateway, address: "192.0.2.1"}}
	for i := 2; i <= 3; i++ {
		g := &gateway{name: fmt.Sprintf("gateway%d", i), address: fmt.Sprintf("192.0.2.%d", 3+i)}
		if g.host, err = lab.AddGateway(g.name, 3+i); err != nil {
			return nil, err
		}
		f.gateways = append(f.gateways, g)
	}
	if err := f.addRouter(ctx, o.BIRD); err != nil {
		return nil, err
	}
	for _, g := range f.gateways {
		if err := g.start(f); err != nil {
			return nil, err
		}
	}
	return f, f.serve(ctx)
}

// addRouter adds a router with a client behind it. With BGP, it also configures BGP between the router and the gateways.
func (f *fleet) addRouter(ctx context.Context, bird string) (err error) {
	o := cluster.RouterOptions{BFD: !f.options.Restarts, GracefulRestart: f.options.Restarts}
	if f.bgp {
		o.BIRD = bird
	}
	var hosts []*netlab.Namespace
	for _, g := range f.gateways {
		o.Gateways = append(o.Gateways, g.address)
		hosts = append(hosts, g.host)
	}
	for _, t := range f.tenants {
		for _, n := range t.cluster.Nodes {
			hosts = append(hosts, n.Namespace)
		}
	}
	if f.router, err = f.lab.AddRouter(o, hosts...); err != nil || !f.bgp {
		return err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: "router"}, StringData: map[string]string{"password": cluster.RouterPassword}}
	peer := &v1alpha1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "router"}, Spec: v1alpha1.BGPPeerSpec{
		Address: cluster.Router4, LocalASN: cluster.GatewaysASN, PeerASN: cluster.RouterASN, PasswordSecret: secret.Name, Families: families[:],
		HoldTime: metav1.Duration{Duration: 9 * time.Second}, ConnectTime: metav1.Duration{Duration: time.Second}}}
	if f.options.Restarts {
		peer.Spec.GracefulRestartTime = &metav1.Duration{Duration: time.Minute}
	} else {
		peer.Spec.BFD = &v1alpha1.BGPPeerBFD{IntervalMilliseconds: cluster.BFDMilliseconds, Multiplier: cluster.BFDMultiply}
	}
	return errors.Join(f.hub.Create(ctx, secret), f.hub.Create(ctx, peer))
}

// clients returns the clients on the segment and behind the router.
func (f *fleet) clients() []*netlab.Namespace {
	return []*netlab.Namespace{f.lab.Client, f.router.Client}
}

func (f *fleet) connect() (err error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	f.hub, err = f.lab.Hub.Client(scheme)
	return err
}

// serve creates the Services and waits for their addresses.
func (f *fleet) serve(ctx context.Context) error {
	ranges := []string{"192.0.2.200-192.0.2.249", "2001:db8:c::200-2001:db8:c::24f"}
	if f.bgp {
		ranges = []string{cluster.RoutedPool4, cluster.RoutedPool6}
	}
	pool := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: poolName}, Spec: v1alpha1.AddressPoolSpec{Addresses: ranges}}
	if err := f.hub.Create(ctx, pool); err != nil {
		return err
	}
	for i := range services {
		if err := f.tenants[i%len(f.tenants)].expose(ctx, fmt.Sprintf("service%d", i), f.annotations()); err != nil {
			return err
		}
	}
	if err := f.exposeRefused(ctx); err != nil {
		return err
	}
	return until(ctx, "addresses for all Services", func() (err error) {
		f.addresses = nil
		for _, t := range f.tenants {
			of, err := t.addresses(ctx)
			if err != nil {
				return err
			}
			f.addresses = append(f.addresses, of...)
		}
		if len(f.addresses) < len(families)*services {
			return fmt.Errorf("%d of %d addresses are announced", len(f.addresses), len(families)*services)
		}
		return nil
	})
}

// annotations returns the annotations of a Service with the forwarding mode of the options.
func (f *fleet) annotations() map[string]string {
	return map[string]string{v1alpha1.AnnotationForwarding: f.options.Forwarding}
}

// exposeRefused creates a Service that gateways cannot serve, as tenants sometimes do. It must not affect other Services.
func (f *fleet) exposeRefused(ctx context.Context) error {
	annotations := map[string]string{v1alpha1.AnnotationProxyProtocol: "v2"}
	if f.options.Backend == "envoy" {
		annotations = map[string]string{v1alpha1.AnnotationForwarding: "direct"}
	}
	return f.tenants[0].expose(ctx, "refused", annotations)
}

// families are the address families of each Service.
var families = [...]corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// until calls try until it returns nil.
func until(ctx context.Context, what string, try func() error) error {
	for begin := time.Now(); ; {
		err := try()
		if err == nil {
			return nil
		}
		if time.Since(begin) > timeout {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func (f *fleet) names() (names []string) {
	for _, g := range f.gateways {
		names = append(names, g.name)
	}
	slices.Sort(names)
	return names
}

// settle waits until each gateway sees all gateways as candidates, and announces its addresses.
func (f *fleet) settle(ctx context.Context) error {
	if f.bgp {
		return until(ctx, "routes by all gateways", f.routed)
	}
	if err := f.requireNoConflict(ctx); err != nil {
		return err
	}
	return until(ctx, "settled gateways", func() error {
		var list v1alpha1.GatewayList
		if err := f.hub.List(ctx, &list); err != nil {
			return err
		}
		announced := int32(0)
		for _, g := range list.Items {
			if !slices.Equal(g.Status.Candidates, f.names()) {
				return fmt.Errorf("%s sees %v", g.Name, g.Status.Candidates)
			}
			announced += g.Status.AnnouncedAddresses
		}
		if len(list.Items) != len(f.gateways) || int(announced) != len(f.addresses) {
			return fmt.Errorf("%d gateways announce %d addresses", len(list.Items), announced)
		}
		return f.requireAgreement(ctx)
	})
}

// requireNoConflict requires that no gateway reports an address conflict with another gateway.
func (f *fleet) requireNoConflict(ctx context.Context) error {
	var list v1alpha1.GatewayList
	if err := f.hub.List(ctx, &list); err != nil {
		return err
	}
	for _, g := range list.Items {
		if c := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionAddressConflict); c != nil {
			return fmt.Errorf("%s says: %s", g.Name, c.Message)
		}
	}
	return nil
}

// routed returns an error unless the router spreads each address over all gateways.
func (f *fleet) routed() error {
	for _, a := range f.addresses {
		nextHops, err := f.router.NextHops(a)
		if err != nil {
			return err
		}
		if len(nextHops) != len(f.gateways) {
			return fmt.Errorf("the router has the next hops %v for %s; its log:\n%s", nextHops, a, f.router.Tail())
		}
	}
	return nil
}

// view is a gateway's view, from its Lease (manager/membership).
type view struct {
	Candidate  bool
	Candidates []string
}

const viewAnnotation, gatewayLabel = "kubelb.k8c.io/view", "kubelb.k8c.io/gateway"

// requireAgreement returns an error unless the view of each gateway, which is newer than its Gateway object, says that all gateways are
// candidates.
func (f *fleet) requireAgreement(ctx context.Context) error {
	var leases coordinationv1.LeaseList
	if err := f.hub.List(ctx, &leases, client.HasLabels{gatewayLabel}); err != nil {
		return err
	}
	agreeing := 0
	for _, lease := range leases.Items {
		var v view
		if err := json.Unmarshal([]byte(lease.Annotations[viewAnnotation]), &v); err != nil {
			return err
		}
		held := lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != "" && lease.Spec.RenewTime != nil && time.Since(lease.Spec.RenewTime.Time) < Lease
		if held && v.Candidate && slices.Equal(v.Candidates, f.names()) {
			agreeing++
		}
	}
	if agreeing != len(f.gateways) {
		return fmt.Errorf("%d of %d gateways see all gateways as candidates", agreeing, len(f.gateways))
	}
	return nil
}

// poolName is the name of the AddressPool, nameLabel the label by which it chooses gateways.
const poolName, nameLabel = "public", "drill.kubelb.k8c.io/name"

// choose sets the gateways that the pool chooses; nil means all.
func (f *fleet) choose(ctx context.Context, selector *metav1.LabelSelector) error {
	var pool v1alpha1.AddressPool
	if err := f.hub.Get(ctx, client.ObjectKey{Name: poolName}, &pool); err != nil {
		return err
	}
	before := pool.DeepCopy()
	pool.Spec.GatewaySelector = selector
	return f.hub.Patch(ctx, &pool, client.MergeFrom(before))
}

// drain drains a gateway, or reverts that, like kubelb drain.
func (f *fleet) drain(ctx context.Context, g *gateway, draining bool) error {
	object := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
	return f.hub.Patch(ctx, object, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"draining":%t}}`, draining)))
}

func (g *gateway) start(f *fleet) (err error) {
	flags := []string{fmt.Sprintf("--gateway-lease=%s", Lease), "--handover=20s", "--gateway-label=" + nameLabel + "=" + g.name}
	if f.bgp {
		flags = append(flags, "--announce=bgp", fmt.Sprintf("--bgp-stay-on-exit=%t", f.options.Restarts))
	}
	g.process, err = f.lab.StartGateway(g.host, g.name, flags...)
	return err
}

// cutOff drops packets from the gateway to the hub.
func (g *gateway) cutOff(ctx context.Context, f *fleet) error {
	_, err := f.lab.On(ctx, g.host, "nft", "add table inet drill; add chain inet drill out { type filter hook output priority 0; }; add rule inet drill out ip daddr 198.51.100.2 drop")
	return err
}

func (g *gateway) reconnect(ctx context.Context, f *fleet) error {
	_, err := f.lab.On(context.WithoutCancel(ctx), g.host, "nft", "delete table inet drill")
	return err
}

// logs returns an error with the ends of all gateways' logs.
func (f *fleet) logs() (err error) {
	for _, g := range f.gateways {
		if g.process != nil {
			err = errors.Join(err, fmt.Errorf("%s logs:\n%s", g.name, g.process.Tail()))
		}
	}
	return err
}

func (f *fleet) close() error {
	for _, g := range f.gateways {
		if g.process != nil {
			_ = g.process.Thaw()
			g.process.Kill()
		}
	}
	if f.router != nil {
		f.router.Stop()
	}
	return f.lab.Close()
}
