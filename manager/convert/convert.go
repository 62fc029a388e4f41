// Package convert converts the hub's API objects into the types of core. It is the manager's only package that knows both.
package convert

import (
	"fmt"
	"math"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// LoadBalancer converts a LoadBalancer. Fields take precedence over annotations. An invalid annotation is a problem that refuses the LoadBalancer; if it has
// addresses, the last valid value counts instead. Packed targets stay packed.
func LoadBalancer(lb *v1alpha1.LoadBalancer) translate.LoadBalancer {
	out := WithoutTargets(lb)
	targets(lb, &out)
	return out
}

// WithoutTargets converts a LoadBalancer without its own targets, of which there may be thousands.
func WithoutTargets(lb *v1alpha1.LoadBalancer) translate.LoadBalancer {
	values := trimAnnotations(lb.Annotations)
	out, invalid := interpret(lb, values)
	if len(invalid) == 0 || len(lb.Status.Addresses) == 0 {
		out.Malformed = problemsOf(invalid)
		endpoints(lb, &out)
		return out
	}
	var partial []translate.Problem
	for _, s := range invalid {
		if s.strict {
			continue
		}
		restore(lb, values, s.key)
		p := s.problem
		p.Partial, p.Message = true, p.Message+"; until then the last valid value stays in effect"
		partial = append(partial, p)
	}
	out, invalid = interpret(lb, values)
	out.Malformed = append(partial, problemsOf(invalid)...)
	endpoints(lb, &out)
	return out
}

// Settings returns the new status.settings: the present annotations, with the last valid value for each invalid one.
func Settings(lb *v1alpha1.LoadBalancer) map[string]string {
	values := trimAnnotations(lb.Annotations)
	_, invalid := interpret(lb, values)
	for _, s := range invalid {
		restore(lb, values, s.key)
	}
	if len(values) == 0 {
		return nil
	}
	return values
}

// restore replaces the value of an annotation by the one in status.settings.
func restore(lb *v1alpha1.LoadBalancer, values map[string]string, key string) {
	delete(values, key)
	if was, has := lb.Status.Settings[key]; has {
		values[key] = was
	}
}

// interpret converts the object without its targets, with these annotations.
func interpret(lb *v1alpha1.LoadBalancer, values map[string]string) (translate.LoadBalancer, []invalidAnnotation) {
	a := annotations{values: values}
	out := translate.LoadBalancer{
		ObjectName:      model.ObjectName{Namespace: lb.Namespace, Name: lb.Name},
		OriginNamespace: lb.Labels[v1alpha1.LabelOriginNamespace], OriginName: lb.Labels[v1alpha1.LabelOriginName],
		Type:                string(lb.Spec.Type),
		LocalOnly:           lb.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		SourceRanges:        a.ranges(lb.Spec.LoadBalancerSourceRanges),
		FamilyPolicy:        ipam.Policy(a.text(string(lb.Spec.IPFamilyPolicy), v1alpha1.AnnotationIPFamilyPolicy)),
		Forwarding:          a.text(lb.Spec.Forwarding, v1alpha1.AnnotationForwarding),
		AddressPool:         a.word(lb.Spec.AddressPool, v1alpha1.AnnotationAddressPool, translate.ValidatePoolName),
		SharingKey:          a.word(lb.Spec.SharingKey, v1alpha1.AnnotationSharingKey, translate.ValidateSharingKey),
		ProxyProtocol:       a.proxyProtocol(lb.Spec.ProxyProtocol),
		IdleTimeout:         a.idleTimeout(lb.Spec.IdleTimeout),
		HealthCheckNodePort: int32(a.number(int(lb.Spec.HealthCheckNodePort), v1alpha1.AnnotationHealthCheckNodePort, 65535)),
		VIPs:                VIPs(lb),
	}
	for _, p := range lb.Spec.Ports {
		out.Ports = append(out.Ports, translate.Port{Name: p.Name, Number: p.Port, Protocol: string(p.Protocol)})
	}
	if lb.Status.AdmittedPorts != nil {
		admitted := []translate.Port{}
		for _, p := range *lb.Status.AdmittedPorts {
			admitted = append(admitted, translate.Port{Number: p.Port, Protocol: string(p.Protocol)})
		}
		out.AdmittedPorts = &admitted
	}
	var families []string
	for _, f := range lb.Spec.IPFamilies {
		families = append(families, string(f))
	}
	for _, f := range a.list(families, v1alpha1.AnnotationIPFamilies, oneOfEach) {
		out.Families = append(out.Families, a.family(f))
	}
	for _, text := range a.list(lb.Spec.RequestedAddresses, v1alpha1.AnnotationRequestedAddresses, oneOfEach) {
		out.Requested = append(out.Requested, a.address(text))
	}
	if lb.Spec.Persistence != nil {
		out.Affinity = true
		seconds := 0
		if t := lb.Spec.Persistence.TimeoutSeconds; t != nil {
			seconds = int(*t)
		}
		out.AffinitySeconds = int32(a.number(seconds, v1alpha1.AnnotationAffinityTimeout, 86400))
	}
	return out, a.invalid
}

func endpoints(lb *v1alpha1.LoadBalancer, out *translate.LoadBalancer) {
	if len(lb.Spec.Endpoints) == 0 {
		return
	}
	e := lb.Spec.Endpoints[0]
	for _, p := range e.Ports {
		out.EndpointPorts = append(out.EndpointPorts, translate.Port{Name: p.Name, Number: p.Port, Protocol: string(p.Protocol)})
	}
	if e.AddressesReference != nil {
		out.Reference = &model.ObjectName{Namespace: e.AddressesReference.Namespace, Name: e.AddressesReference.Name}
	}
}

func addresses(list []v1alpha1.EndpointAddress) []translate.Address {
	out := make([]translate.Address, len(list))
	for i, a := range list {
		out[i] = translate.Address{IP: a.IP, Hostname: a.Hostname}
	}
	return out
}

// VIPs returns the addresses in status.addresses.
func VIPs(lb *v1alpha1.LoadBalancer) []netip.Addr {
	var out []netip.Addr
	for _, g := range Allocations(lb) {
		out = append(out, g.Address)
	}
	return out
}

// Allocations returns the addresses in status.addresses, with their AddressPools.
func Allocations(lb *v1alpha1.LoadBalancer) []ipam.Allocation {
	var out []ipam.Allocation
	for _, a := range lb.Status.Addresses {
		if address, err := netip.ParseAddr(a.Address); err == nil {
			out = append(out, ipam.Allocation{Address: address, Pool: a.Pool})
		}
	}
	return out
}

// Addresses converts an Addresses object.
func Addresses(a *v1alpha1.Addresses) translate.Addresses {
	out := translate.Addresses{ObjectName: model.ObjectName{Namespace: a.Namespace, Name: a.Name}, List: addresses(a.Spec.Addresses)}
	for _, text := range a.Status.Held {
		if address, err := netip.ParseAddr(text); err == nil {
			out.Held = append(out.Held, address)
		}
	}
	return out
}

// LoadBalancerObjects returns the greatest number of LoadBalancers in a tenant's namespace.
func LoadBalancerObjects(t *v1alpha1.Tenant) int32 {
	if n := t.Spec.Objects.LoadBalancers; n != nil {
		return *n
	}
	if limit := t.Spec.Limits.LoadBalancers; limit != nil && *limit < 1<<30 {
		return max(v1alpha1.DefaultLoadBalancerObjects, 2**limit)
	}
	return v1alpha1.DefaultLoadBalancerObjects
}

// PortLimit returns the tenant's limit of ports. The default is enough for usual Services, but less than the schema allows.
func PortLimit(t *v1alpha1.Tenant) *int32 {
	if t.Spec.Limits.Ports != nil {
		return t.Spec.Limits.Ports
	}
	n := int32(min(max(v1alpha1.DefaultPortsPerObject*int64(LoadBalancerObjects(t)), v1alpha1.DefaultPortsAtLeast), math.MaxInt32))
	return &n
}

// ownEndpointLimit returns the default limit of endpoints of a LoadBalancer: a tenant with fewer LoadBalancers may have more endpoints in each.
func ownEndpointLimit(t *v1alpha1.Tenant) uint32 {
	return max(v1alpha1.DefaultOwnEndpointsAtLeast, v1alpha1.DefaultOwnEndpoints/uint32(max(LoadBalancerObjects(t), 1)))
}

// Tenant converts a Tenant. It ignores invalid CIDRs, which the schema refuses.
func Tenant(t *v1alpha1.Tenant) translate.Tenant {
	out := translate.Tenant{Name: t.Name, Network: t.Spec.BackendNetwork, Created: t.CreationTimestamp.Unix(), Disabled: t.Spec.LoadBalancer.Disable || t.Spec.Revoked, Deleting: t.DeletionTimestamp != nil,
		Limits: ipam.Limits{LoadBalancers: t.Spec.Limits.LoadBalancers, Addresses: t.Spec.Limits.Addresses, Ports: PortLimit(t)}}
	number := func(limit *int32) uint32 {
		if limit == nil {
			return 0
		}
		return uint32(*limit)
	}
	out.EndpointsPerLoadBalancer, out.OwnEndpointsPerLoadBalancer = number(t.Spec.Limits.EndpointsPerLoadBalancer), ownEndpointLimit(t)
	out.ConnectionsPerPort, out.NewConnectionsPerSecondPerPort = number(t.Spec.Limits.ConnectionsPerPort), number(t.Spec.Limits.NewConnectionsPerSecondPerPort)
	if p := t.Spec.BackendPorts; p != nil {
		out.BackendPorts = translate.PortRange{First: uint16(p.First), Last: uint16(p.Last)}
	}
	for _, text := range t.Spec.BackendCIDRs {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			out.BackendCIDRs = append(out.BackendCIDRs, prefix.Masked())
		}
	}
	return out
}

// Pool converts an AddressPool.
func Pool(p *v1alpha1.AddressPool) (ipam.Pool, error) {
	isTrue := func(b *bool) bool { return b == nil || *b }
	ranges, err := ipam.ParseRanges(p.Spec.Addresses, isTrue(p.Spec.AvoidNetworkAddresses))
	if err != nil {
		return ipam.Pool{}, fmt.Errorf("spec.addresses: %w", err)
	}
	reserve := v1alpha1.DefaultReservation
	if p.Spec.ReserveRequestedFor != nil {
		reserve = p.Spec.ReserveRequestedFor.Duration
	}
	return ipam.Pool{Name: p.Name, ReserveFor: reserve, Ranges: ranges, Tenants: p.Spec.Tenants, AutoAssign: isTrue(p.Spec.AutoAssign),
		Priority: p.Spec.Priority, Draining: p.Spec.Draining}, nil
}

// ExternalRanges returns the external ranges of an AddressPool: those in its status, or those of its spec if it became Ready with a release without
// status.addresses.
func ExternalRanges(p *v1alpha1.AddressPool) []ipam.Range {
	if len(p.Status.Addresses) == 0 && meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady) {
		pool, _ := Pool(p)
		return pool.Ranges
	}
	ranges, err := ipam.ParseRanges(p.Status.Addresses, false)
	if err != nil {
		return nil // only a foreign write to the status can cause this
	}
	return ranges
}

// Election returns what the gateway's status says about the addresses that the gateway answers for.
func Election(g *v1alpha1.Gateway) election.Gateway {
	return election.Gateway{Name: g.Name, Elects: g.Status.Elects,
		View: election.View{Candidates: g.Status.Candidates, WithoutIPv4: g.Status.WithoutIPv4, WithoutIPv6: g.Status.WithoutIPv6}}
}

// SilentReason returns why a gateway announces addresses of a family to nobody, empty if it announces them.
func SilentReason(g *v1alpha1.Gateway, f ipam.Family) string {
	for _, s := range g.Status.Silent {
		if string(s.Family) == f.String() {
			return s.Message
		}
	}
	return ""
}
