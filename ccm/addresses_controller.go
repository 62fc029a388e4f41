package ccm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/core/translate"
)

// addressesReconciler writes the object Addresses/default on the hub: the addresses of all nodes that may get traffic.
type addressesReconciler struct {
	tenant client.Client
	hub    client.Client
	config Config
	events events.EventRecorder
	// nodes is the problem that Services report about addresses that the hub does not take. leftOut counts these addresses.
	nodes   *nodesProblem
	leftOut *prometheus.GaugeVec
	// reported is the message of the last event of each node, by the node's name. unresolved: a host name of a node did not resolve. Only Reconcile uses both.
	reported   map[string]string
	unresolved bool
}

func withPredicate(p predicate.Predicate) builder.WatchesOption { return builder.WithPredicates(p) }

// setUp makes the controller reconcile the object when a node changes, and when another program changes the object.
func (r *addressesReconciler) setUp(mgr ctrl.Manager, hub cluster.Cluster) error {
	request := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: r.config.HubNamespace, Name: v1alpha1.DefaultAddressesName}}
	one := func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{request} }
	onHub := func(context.Context, *v1alpha1.Addresses) []reconcile.Request { return []reconcile.Request{request} }
	return ctrl.NewControllerManagedBy(mgr).Named("addresses").
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(one), withPredicate(nodeMatters)).
		WatchesRawSource(source.Kind(hub.GetCache(), &v1alpha1.Addresses{}, handler.TypedEnqueueRequestsFromMapFunc(onHub))).
		Complete(r)
}

// Reconcile writes the object if it differs from the nodes. It also reports addresses that it leaves out.
func (r *addressesReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if req.Name != v1alpha1.DefaultAddressesName {
		return reconcile.Result{}, nil
	}
	var list corev1.NodeList
	if err := r.tenant.List(ctx, &list); err != nil {
		return reconcile.Result{}, err
	}
	nodes := make([]translate.Node, len(list.Items))
	for i := range list.Items {
		nodes[i] = convert.Node(&list.Items[i])
	}
	addresses, left := r.addresses(ctx, nodes)
	present := map[string]bool{}
	for i := range list.Items {
		r.reportNode(&list.Items[i], left[list.Items[i].Name])
		present[list.Items[i].Name] = true
	}
	maps.DeleteFunc(r.reported, func(name, _ string) bool { return !present[name] })
	spec := v1alpha1.AddressesSpec{Addresses: convert.Addresses(addresses)}
	if len(spec.Addresses) == 0 {
		log.FromContext(ctx).Info("no node that may get traffic has an address of --node-address-type: gateways refuse connections",
			"nodes", len(nodes), "node-address-type", r.config.NodeAddressType)
	}
	err := r.push(ctx, req.NamespacedName, spec)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return reconcile.Result{}, err // the cache is out of date; the retry reads the object again
	}
	r.setProblem(left, err)
	if err == nil && r.unresolved {
		return reconcile.Result{RequeueAfter: resolveEvery}, nil
	}
	return reconcile.Result{}, err
}

// addresses returns the addresses that the hub takes. leftOut has the reasons for the other addresses, by the node's name. Addresses beyond the hub's bounds
// are under the empty name.
func (r *addressesReconciler) addresses(ctx context.Context, nodes []translate.Node) (kept []translate.Address, leftOut map[string][]string) {
	var all []translate.Address
	leftOut, r.unresolved = map[string][]string{}, false
	for _, n := range nodes {
		resolved, failed := r.config.resolve(ctx, translate.NodeAddresses([]translate.Node{n}, r.config.NodeAddressType))
		kept, left := splitAccepted("node "+n.Name+": ", resolved)
		left, r.unresolved = append(left, failed...), r.unresolved || len(failed) > 0
		all = append(all, kept...)
		if len(left) > 0 {
			leftOut[n.Name] = left
		}
	}
	kept, beyond := translate.LimitTargets(all, translate.MaxHostnameCharacters)
	if beyond > 0 {
		leftOut[""] = beyondBounds(beyond)
	}
	return kept, leftOut
}

// splitAccepted returns the addresses that the hub's schema takes, and a reason for each address that it refuses.
func splitAccepted(of string, list []translate.Address) (kept []translate.Address, left []string) {
	kept = []translate.Address{}
	for _, a := range list {
		if why := translate.ValidateListEntry(a); why != "" {
			left = append(left, of+why)
			continue
		}
		kept = append(kept, a)
	}
	return kept, left
}

func beyondBounds(n int) []string {
	if n == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d more than the %d addresses that the management cluster takes; exclude nodes from load balancers by the label node.kubernetes.io/exclude-from-external-load-balancers", n, translate.MaxTargets)}
}

// push writes the object if it differs.
func (r *addressesReconciler) push(ctx context.Context, name types.NamespacedName, spec v1alpha1.AddressesSpec) error {
	var current v1alpha1.Addresses
	err := r.hub.Get(ctx, name, &current)
	if apierrors.IsNotFound(err) {
		return r.hub.Create(ctx, &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}, Spec: spec})
	}
	if err != nil || equality.Semantic.DeepEqual(current.Spec, spec) {
		return err
	}
	current.Spec = spec
	return r.hub.Update(ctx, &current)
}

// reportNode sends an event of a node if its addresses that are left out have changed.
func (r *addressesReconciler) reportNode(node *corev1.Node, left []string) {
	message := phrase.Few(left, "; ")
	if r.reported[node.Name] == message {
		return
	}
	if r.reported[node.Name] = message; message == "" {
		delete(r.reported, node.Name)
		return
	}
	r.events.Eventf(node, nil, corev1.EventTypeWarning, translate.ReasonNodesLeftOut, "Sync", "%s", plain.Note("left out of load balancers: "+message))
}

// setProblem updates the metric and the problem that Services report: addresses that are left out, or a list that the hub has refused.
func (r *addressesReconciler) setProblem(left map[string][]string, failed error) {
	var all []string
	for _, node := range slices.Sorted(maps.Keys(left)) {
		all = append(all, left[node]...)
	}
	r.leftOut.WithLabelValues().Set(float64(len(all)))
	switch {
	case failed != nil:
		r.nodes.set(translate.Problem{Reason: reasonHubRefused, Partial: true, Message: "the management cluster did not accept the nodes' addresses, and may still have the former ones: " + failed.Error()})
	case len(all) > 0:
		r.nodes.set(translate.NodesLeftOut(all))
	default:
		r.nodes.set(translate.Problem{})
	}
}

// resolve replaces host names by their addresses, since the hub never resolves names of a tenant. failed names each host name that does not resolve, with the
// reason.
func (c Config) resolve(ctx context.Context, list []translate.Address) (out []translate.Address, failed []string) {
	out = []translate.Address{}
	for _, a := range list {
		if a.IP != "" || c.Resolver == nil {
			out = append(out, a)
			continue
		}
		ips, err := c.Resolver.LookupNetIP(ctx, "ip", a.Hostname)
		if err != nil {
			log.FromContext(ctx).Error(err, "resolve node name", "name", a.Hostname)
			failed = append(failed, fmt.Sprintf("node name %s does not resolve: %s", a.Hostname, lookupFailure(err)))
			continue
		}
		slices.SortFunc(ips, netip.Addr.Compare)
		for _, ip := range ips {
			out = append(out, translate.Address{IP: ip.Unmap().String()})
		}
	}
	return out, failed
}

// lookupFailure describes the error of a DNS look-up. The text is the same for each look-up that fails for the same reason: the error itself names a port.
func lookupFailure(err error) string {
	var of *net.DNSError
	switch {
	case errors.As(err, &of) && of.IsNotFound:
		return "no such host"
	case errors.As(err, &of) && of.IsTimeout:
		return "the DNS server has not answered in time"
	}
	return "the DNS look-up failed; see the log of kubelb-ccm"
}

// resolveEvery is the interval at which host names that do not resolve are looked up again.
const resolveEvery = 30 * time.Second
