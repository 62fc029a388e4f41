// Package render shows what KubeLB makes of Kubernetes objects: the LoadBalancer on the hub, the model, and what a dataplane
// would hold. It needs no cluster. It uses the conversions of the CCM and of the manager, and the translation of core.
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

// Result is the result of Render.
type Result struct {
	Input  explain.Input
	Output explain.Output
	// LoadBalancers and Addresses are the hub's objects, with the external addresses in their status.
	LoadBalancers []*v1alpha1.LoadBalancer
	Addresses     []*v1alpha1.Addresses
	Problems      []Problem
	// Assumed describes what was filled in.
	Assumed []string

	objects []manifest.Object
	// validator checks what API servers refuse.
	validator *validation.Validator
	services  []*corev1.Service
	nodes     []*corev1.Node
	slices    []*discoveryv1.EndpointSlice
	tenants   []*v1alpha1.Tenant
	pools     []*v1alpha1.AddressPool
	given     []*v1alpha1.LoadBalancer
}

// Problem is a problem with its position in a file.
type Problem struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Object  string `json:"object"`
	Reason  string `json:"reason"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	// Partial means that the object is served nevertheless.
	Partial bool `json:"partial,omitempty"`
	// NotOurs means that another controller is responsible for the object, which is no fault.
	NotOurs bool `json:"notOurs,omitempty"`
}

// String formats the problem like a compiler's message.
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

// Refused reports whether an object is not served.
func (r *Result) Refused() bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool { return !p.Partial && !p.NotOurs })
}

// Render translates the objects that API servers accept. Objects that they refuse become problems. It returns an error if the objects are ambiguous.
func Render(ctx context.Context, objects []manifest.Object, options Options) (*Result, error) {
	forbidden, err := options.forbidden()
	if err != nil {
		return nil, err
	}
	r := &Result{objects: objects, validator: options.Validator}
	if r.validator == nil {
		r.validator = &validation.Validator{}
	}
	accepted := objects
	if !options.AsStored {
		if accepted, err = r.admit(ctx); err != nil {
			return nil, err
		}
	}
	for _, o := range accepted {
		r.add(o)
	}
	options.Tenant = r.tenantOf(options.Tenant)
	f := &filler{}
	f.services(r.services, r.nodes)
	if err := requireDistinct(objects); err != nil {
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

// explain translates the objects. It repeats that without the Services whose LoadBalancer the hub refuses.
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

// requireDistinct returns an error if two objects have the same name.
func requireDistinct(objects []manifest.Object) error {
	type key struct{ kind, namespace, name string }
	first := map[key]manifest.Object{}
	for _, o := range objects {
		if o.Typed == nil {
			continue
		}
		k := key{o.Kind, o.Typed.GetNamespace(), o.Typed.GetName()}
		if before, twice := first[k]; twice {
			name := strings.TrimPrefix(k.namespace+"/"+k.name, "/")
			return fmt.Errorf("%s:%d: %s %s appears twice: it is also at %s:%d", o.File, o.Line(""), k.kind, name, before.File, before.Line(""))
		}
		first[k] = o
	}
	return nil
}

func (r *Result) add(o manifest.Object) {
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

// tenantNames returns the tenants of the given objects.
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

// input converts the objects like the CCM and the manager.
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

// locate finds the object and the line of a problem. The problem of a LoadBalancer that was not given is one of its Service.
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

// hubObjects sets the objects as they would be on the hub.
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

// Dataplane starts the backend's plugin and returns what the dataplane would hold, in the dataplane's own language. Frontends
// that it cannot serve become problems. It changes nothing on the host.
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

// RenderBy is like Dataplane, with a running dataplane.
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
