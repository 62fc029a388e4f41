// Package render shows what plain Kubernetes objects become: the LoadBalancer on the hub, the model, and what a dataplane
// would hold. It runs the CCM's and the manager's own conversions and core's own translation, without a cluster.
package render

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	ccmconvert "kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/core/explain"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	managerconvert "kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/tools/manifest"
	"kubelb.k8c.io/tools/validation"
)

// Result is what the objects become.
type Result struct {
	Input  explain.Input
	Output explain.Output
	// LoadBalancers and Addresses are the hub's objects, with the external addresses in their status.
	LoadBalancers []*v1alpha1.LoadBalancer
	Addresses     []*v1alpha1.Addresses
	Problems      []Problem
	// Assumed says what was not given and has been filled in.
	Assumed []string

	objects []manifest.Object
	// judge says what API servers refuse.
	judge    *validation.Validator
	services []*corev1.Service
	nodes    []*corev1.Node
	slices   []*discoveryv1.EndpointSlice
	tenants  []*v1alpha1.Tenant
	pools    []*v1alpha1.AddressPool
	given    []*v1alpha1.LoadBalancer
}

// Problem is a problem with the place that it comes from.
type Problem struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Object  string `json:"object"`
	Reason  string `json:"reason"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	// Partial: the object is served nevertheless.
	Partial bool `json:"partial,omitempty"`
	// NotOurs: the object is for somebody else, and nothing is wrong with it.
	NotOurs bool `json:"notOurs,omitempty"`
}

// String is the problem as compilers write them.
func (p Problem) String() string {
	place, severity := "", "error"
	if p.File != "" {
		place = fmt.Sprintf("%s:%d: ", p.File, p.Line)
	}
	switch {
	case p.NotOurs:
		severity = "note"
	case p.Partial:
		severity = "warning"
	}
	return fmt.Sprintf("%s%s: %s: %s (%s)", place, severity, p.Object, p.Message, p.Reason)
}

// Refused reports whether some object is not served.
func (r *Result) Refused() bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool { return !p.Partial && !p.NotOurs })
}

// Render translates the objects that API servers take. What they refuse is among the problems. An error names what makes the objects ambiguous.
func Render(ctx context.Context, objects []manifest.Object, options Options) (*Result, error) {
	forbidden, err := options.forbidden()
	if err != nil {
		return nil, err
	}
	r := &Result{objects: objects, judge: options.Judge}
	if r.judge == nil {
		r.judge = &validation.Validator{}
	}
	taken := objects
	if !options.AsStored {
		if taken, err = r.admit(ctx); err != nil {
			return nil, err
		}
	}
	for _, o := range taken {
		r.sort(o)
	}
	options.Tenant = r.tenantOf(options.Tenant)
	f := &filler{}
	f.services(r.services, r.nodes)
	if err := distinct(objects); err != nil {
		return nil, err
	}
	f.hub(r, r.tenantNames(options.Tenant))
	r.Assumed = f.assumed
	if err := r.explain(ctx, options, forbidden); err != nil {
		return nil, err
	}
	for _, p := range r.Output.Problems {
		r.Problems = append(r.Problems, r.locate(p))
	}
	r.hubObjects()
	return r, nil
}

// explain translates, and once more without those Services whose LoadBalancer the hub refuses.
func (r *Result) explain(ctx context.Context, options Options, forbidden []netip.Prefix) (err error) {
	for {
		r.input(options)
		r.Input.Forbidden = forbidden
		if r.Output, err = explain.Explain(r.Input); err != nil || options.AsStored {
			return err
		}
		refused, err := r.refuseOnHub(ctx)
		if err != nil || !refused {
			return err
		}
	}
}

// distinct reports the first object that is there twice.
func distinct(objects []manifest.Object) error {
	type key struct{ kind, namespace, name string }
	first := map[key]manifest.Object{}
	for _, o := range objects {
		if o.Typed == nil {
			continue
		}
		k := key{o.Kind, o.Typed.GetNamespace(), o.Typed.GetName()}
		if before, twice := first[k]; twice {
			name := strings.TrimPrefix(k.namespace+"/"+k.name, "/")
			return fmt.Errorf("%s:%d: %s %s appears twice: it is at %s:%d too", o.File, o.Line(""), k.kind, name, before.File, before.Line(""))
		}
		first[k] = o
	}
	return nil
}

func (r *Result) sort(o manifest.Object) {
	switch typed := o.Typed.(type) {
	case *corev1.Service:
		r.services = append(r.services, typed)
	case *corev1.Node:
		r.nodes = append(r.nodes, typed)
	case *discoveryv1.EndpointSlice:
		if typed.Namespace == "" {
			typed.Namespace = metav1.NamespaceDefault
		}
		r.slices = append(r.slices, typed)
	case *v1alpha1.Tenant:
		r.tenants = append(r.tenants, typed)
	case *v1alpha1.AddressPool:
		r.pools = append(r.pools, typed)
	case *v1alpha1.LoadBalancer:
		r.given = append(r.given, typed)
	case *v1alpha1.Addresses:
		r.Addresses = append(r.Addresses, typed)
	}
}

func (r *Result) tenantOf(name string) string {
	if name == "" && len(r.tenants) == 1 {
		return r.tenants[0].Name
	}
	return cmp.Or(name, defaultTenant)
}

// tenantNames are all whose objects are given.
func (r *Result) tenantNames(ofServices string) []string {
	names := map[string]bool{}
	if len(r.services)+len(r.nodes) > 0 {
		names[ofServices] = true
	}
	for _, lb := range r.given {
		if name, ok := strings.CutPrefix(lb.Namespace, v1alpha1.TenantNamespacePrefix); ok {
			names[name] = true
		}
	}
	var out []string
	for name := range names {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// input converts as the CCM and the manager do.
func (r *Result) input(options Options) {
	r.Input = explain.Input{Version: explain.Version}
	if len(r.services)+len(r.nodes) > 0 {
		r.Input.Clusters = []explain.Cluster{r.cluster(options)}
	}
	for _, t := range r.tenants {
		r.Input.Tenants = append(r.Input.Tenants, managerconvert.Tenant(t))
	}
	isTrue := func(b *bool) bool { return b == nil || *b }
	slices.SortStableFunc(r.pools, func(a, b *v1alpha1.AddressPool) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	for _, p := range r.pools {
		r.Input.AddressPools = append(r.Input.AddressPools, explain.AddressPool{Name: p.Name, Addresses: p.Spec.Addresses, Tenants: p.Spec.Tenants,
			AutoAssign: isTrue(p.Spec.AutoAssign), AvoidNetworkAddresses: isTrue(p.Spec.AvoidNetworkAddresses), Priority: p.Spec.Priority, Draining: p.Spec.Draining})
	}
	for _, a := range r.Addresses {
		r.Input.Addresses = append(r.Input.Addresses, managerconvert.Addresses(a))
	}
	for _, lb := range r.given {
		r.Input.LoadBalancers = append(r.Input.LoadBalancers, managerconvert.LoadBalancer(lb))
	}
}

func (r *Result) cluster(options Options) explain.Cluster {
	c := explain.Cluster{Tenant: options.Tenant, NodeAddressType: options.NodeAddressType, ClassRequired: options.ClassRequired}
	for _, s := range r.services {
		c.Services = append(c.Services, ccmconvert.Service(s))
	}
	for _, n := range r.nodes {
		c.Nodes = append(c.Nodes, ccmconvert.Node(n))
	}
	for _, s := range r.slices {
		c.EndpointSlices = append(c.EndpointSlices, explain.EndpointSlice{
			Namespace: s.Namespace, Service: s.Labels[discoveryv1.LabelServiceName], Slice: ccmconvert.Slice(s)})
	}
	return c
}

// locate finds the object and the line of a problem. A LoadBalancer that was not given is its Service's.
func (r *Result) locate(p explain.Problem) Problem {
	kind, name := p.Kind, p.ObjectName
	if kind == "LoadBalancer" && !r.isGiven(name) {
		for _, lb := range r.Output.LoadBalancers {
			if lb.ObjectName == name {
				kind, name = "Service", model.ObjectName{Namespace: lb.OriginNamespace, Name: lb.OriginName}
			}
		}
	}
	out := Problem{Object: kind + " " + strings.TrimPrefix(name.String(), "/"), Reason: p.Reason, Field: p.Field, Message: p.Message, Partial: p.Partial, NotOurs: p.NotOurs}
	for _, o := range r.objects {
		if o.Typed != nil && o.Kind == kind && o.Typed.GetNamespace() == name.Namespace && o.Typed.GetName() == name.Name {
			out.File, out.Line = o.File, o.Line(p.Field)
		}
	}
	return out
}

func (r *Result) isGiven(name model.ObjectName) bool {
	return slices.ContainsFunc(r.given, func(lb *v1alpha1.LoadBalancer) bool { return lb.Namespace == name.Namespace && lb.Name == name.Name })
}

// hubObjects are the hub's objects as they would stand there.
func (r *Result) hubObjects() {
	given := map[model.ObjectName]*v1alpha1.LoadBalancer{}
	for _, lb := range r.given {
		given[model.ObjectName{Namespace: lb.Namespace, Name: lb.Name}] = lb
	}
	for _, lb := range r.Output.LoadBalancers {
		object, known := given[lb.ObjectName]
		if !known {
			object = ccmconvert.LoadBalancer(lb)
		}
		object.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "LoadBalancer"}
		object.Status.Addresses = nil
		for _, vip := range lb.VIPs {
			object.Status.Addresses = append(object.Status.Addresses, v1alpha1.AllocatedAddress{Address: vip.String(), Pool: r.poolOf(vip)})
		}
		r.LoadBalancers = append(r.LoadBalancers, object)
	}
	r.Addresses = nil
	for _, a := range r.Output.Addresses {
		r.Addresses = append(r.Addresses, &v1alpha1.Addresses{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Addresses"},
			ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Name}, Spec: v1alpha1.AddressesSpec{Addresses: ccmconvert.Addresses(a.List)}})
	}
}

func (r *Result) poolOf(vip netip.Addr) string {
	for _, p := range r.pools {
		if pool, err := managerconvert.Pool(p); err == nil && pool.Contains(vip) {
			return p.Name
		}
	}
	return ""
}

// Dataplane starts the backend and returns what it would hold, in its own language. Frontends that it cannot serve are
// left out and added to the problems. It changes nothing on the host.
func (r *Result) Dataplane(ctx context.Context, nameOrPath string) (string, error) {
	path, err := plugin.Find(nameOrPath)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "kubelb-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	process, err := plugin.Load(plugin.Options{Path: path, SocketDir: dir, Log: io.Discard})
	if err != nil {
		return "", err
	}
	defer process.Stop()
	return r.RenderBy(ctx, process)
}

// RenderBy is Dataplane with a backend that runs.
func (r *Result) RenderBy(ctx context.Context, process dataplane.Dataplane) (string, error) {
	description, err := process.Describe(ctx)
	if err != nil {
		return "", fmt.Errorf("describe backend: %w", err)
	}
	snapshot := model.Snapshot{Pools: r.Output.Model.Pools}
	for _, f := range r.Output.Model.Frontends {
		if lacking, lacks := description.Lacks(f); lacks {
			r.Problems = append(r.Problems, r.locate(explain.Problem{Kind: "LoadBalancer", ObjectName: f.Owner, Problem: translate.Problem{
				Reason: "DataplaneRefused", Message: fmt.Sprintf("frontend %s: the %s backend does not support %s", f.FrontendKey, description.Name, lacking)}}))
			continue
		}
		snapshot.Frontends = append(snapshot.Frontends, f)
	}
	text, err := process.Render(ctx, snapshot)
	if err != nil {
		return "", fmt.Errorf("render by backend %s: %w", description.Name, err)
	}
	return text, nil
}
