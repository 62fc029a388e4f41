// Package convert converts Kubernetes objects of a tenant cluster into the types of core, and the results of core into objects of
// the hub. It is the CCM's only package that knows both.
package convert

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
)

// Service converts a Service.
func Service(s *corev1.Service) translate.Service {
	out := translate.Service{
		Namespace: s.Namespace, Name: s.Name, UID: string(s.UID),
		Type: string(s.Spec.Type), Class: s.Spec.LoadBalancerClass, Headless: s.Spec.ClusterIP == corev1.ClusterIPNone,
		LocalOnly:    s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Affinity:     s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP,
		SourceRanges: s.Spec.LoadBalancerSourceRanges, SourceRangeAnnotation: s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey],
		HealthCheckNodePort: s.Spec.HealthCheckNodePort,
		LoadBalancerIP:      s.Spec.LoadBalancerIP, RequestedAnnotation: s.Annotations[v1alpha1.AnnotationRequestedAddresses],
		Forwarding: s.Annotations[v1alpha1.AnnotationForwarding], ProxyProtocol: s.Annotations[v1alpha1.AnnotationProxyProtocol],
		IdleTimeout: strings.TrimSpace(s.Annotations[v1alpha1.AnnotationIdleTimeout]),
		AddressPool: strings.TrimSpace(s.Annotations[v1alpha1.AnnotationAddressPool]), SharingKey: strings.TrimSpace(s.Annotations[v1alpha1.AnnotationSharingKey]),
	}
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		out.AffinitySeconds = *c.ClientIP.TimeoutSeconds
	}
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, translate.ServicePort{Name: p.Name, Protocol: string(p.Protocol), Port: p.Port, NodePort: p.NodePort})
	}
	for _, f := range s.Spec.IPFamilies {
		out.Families = append(out.Families, familyFrom(f))
	}
	if s.Spec.IPFamilyPolicy != nil {
		out.FamilyPolicy = ipam.Policy(*s.Spec.IPFamilyPolicy)
	}
	return out
}

func familyFrom(f corev1.IPFamily) ipam.Family {
	if f == corev1.IPv6Protocol {
		return ipam.IPv6
	}
	return ipam.IPv4
}

// Node converts a node.
func Node(n *corev1.Node) translate.Node {
	out := translate.Node{Name: n.Name, Labels: n.Labels, Deleting: n.DeletionTimestamp != nil}
	for _, a := range n.Status.Addresses {
		out.Addresses = append(out.Addresses, translate.NodeAddress{Type: string(a.Type), Address: a.Address})
	}
	for _, t := range n.Spec.Taints {
		out.Taints = append(out.Taints, t.Key)
	}
	return out
}

// Slice converts an EndpointSlice. Absent conditions have the defaults of the API: ready, serving, not terminating.
func Slice(s *discoveryv1.EndpointSlice) translate.Slice {
	var out translate.Slice
	orDefault := func(condition *bool, value bool) bool {
		if condition == nil {
			return value
		}
		return *condition
	}
	for _, e := range s.Endpoints {
		if e.NodeName == nil {
			continue
		}
		ready := orDefault(e.Conditions.Ready, true)
		out.Endpoints = append(out.Endpoints, translate.SliceEndpoint{Node: *e.NodeName,
			Ready: ready, Serving: orDefault(e.Conditions.Serving, ready), Terminating: orDefault(e.Conditions.Terminating, false)})
	}
	return out
}

// LoadBalancer converts a LoadBalancer into the object of the hub.
func LoadBalancer(lb translate.LoadBalancer) *v1alpha1.LoadBalancer {
	out := &v1alpha1.LoadBalancer{
		ObjectMeta: metav1.ObjectMeta{Namespace: lb.Namespace, Name: lb.Name, Labels: map[string]string{
			v1alpha1.LabelOriginNamespace: lb.OriginNamespace,
			v1alpha1.LabelOriginName:      lb.OriginName,
			v1alpha1.LabelTenant:          lb.Namespace,
		}},
		Spec: v1alpha1.LoadBalancerSpec{
			Type:                     corev1.ServiceTypeLoadBalancer,
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicyCluster,
			LoadBalancerSourceRanges: lb.SourceRanges,
			IPFamilyPolicy:           corev1.IPFamilyPolicy(lb.FamilyPolicy),
			HealthCheckNodePort:      lb.HealthCheckNodePort,
			Forwarding:               lb.Forwarding,
			ProxyProtocol:            lb.ProxyProtocol,
			IdleTimeout:              lb.IdleTimeout,
			AddressPool:              lb.AddressPool,
			SharingKey:               lb.SharingKey,
			Endpoints: []v1alpha1.LoadBalancerEndpoints{{
				AddressesReference: &v1alpha1.AddressesReference{Name: v1alpha1.DefaultAddressesName},
			}},
		},
	}
	if lb.LocalOnly {
		out.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	endpoints := &out.Spec.Endpoints[0]
	if lb.Local != nil {
		local := Addresses(*lb.Local)
		endpoints.LocalAddresses = &local
	}
	for i, p := range lb.Ports {
		target := lb.EndpointPorts[i]
		out.Spec.Ports = append(out.Spec.Ports, v1alpha1.LoadBalancerPort{Name: p.Name, Port: p.Number, Protocol: corev1.Protocol(p.Protocol)})
		endpoints.Ports = append(endpoints.Ports, v1alpha1.EndpointPort{Name: target.Name, Port: target.Number, Protocol: corev1.Protocol(target.Protocol)})
	}
	if lb.Affinity {
		out.Spec.Persistence = &v1alpha1.Persistence{Type: v1alpha1.PersistenceSourceIP}
		if lb.AffinitySeconds > 0 {
			out.Spec.Persistence.TimeoutSeconds = &lb.AffinitySeconds
		}
	}
	for _, f := range lb.Families {
		out.Spec.IPFamilies = append(out.Spec.IPFamilies, corev1.IPFamily(f.String()))
	}
	for _, a := range lb.Requested {
		out.Spec.RequestedAddresses = append(out.Spec.RequestedAddresses, a.String())
	}
	return out
}

// Addresses converts a list of targets into the form of the hub's objects.
func Addresses(list []translate.Address) []v1alpha1.EndpointAddress {
	out := make([]v1alpha1.EndpointAddress, len(list))
	for i, a := range list {
		out[i] = v1alpha1.EndpointAddress{IP: a.IP, Hostname: a.Hostname}
	}
	return out
}
