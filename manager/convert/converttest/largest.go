// Package converttest makes the largest objects that tenants may write, for tests that measure their cost.
package converttest

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// Bounds of the schema and of the policies, and default limits of a Tenant.
const (
	LoadBalancers = v1alpha1.DefaultLoadBalancerObjects
	AddressLists  = v1alpha1.DefaultAddressesObjects
	annotation    = 16384
	nameLength    = 63
)

// Tenant returns the tenant with this number. It may target all addresses that its objects list.
func Tenant(number int) *v1alpha1.Tenant {
	return &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: tenantName(number)}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{fmt.Sprintf("fd%02x::/16", number)}}}
}

func tenantName(number int) string { return fmt.Sprintf("tenant%d", number) }

// LoadBalancer returns a LoadBalancer of the tenant, with targets that no other one has.
func LoadBalancer(tenant, number int) *v1alpha1.LoadBalancer {
	lb := &v1alpha1.LoadBalancer{ObjectMeta: metaOf(tenant, fmt.Sprintf("lb-%04d", number))}
	lb.Annotations = map[string]string{}
	for _, key := range []string{v1alpha1.AnnotationSourceRanges, v1alpha1.AnnotationSharingKey, v1alpha1.AnnotationAddressPool} {
		lb.Annotations[key] = strings.Repeat("x", annotation)
	}
	e := v1alpha1.LoadBalancerEndpoints{Addresses: targets(tenant, number)}
	lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, AddressPool: strings.Repeat("p", 253), SharingKey: strings.Repeat("k", 253)}
	for i := range translate.MaxPorts {
		name := fmt.Sprintf("p%0*d", nameLength-1, i)
		lb.Spec.Ports = append(lb.Spec.Ports, v1alpha1.LoadBalancerPort{Name: name, Port: int32(1 + i), Protocol: corev1.ProtocolTCP})
		e.Ports = append(e.Ports, v1alpha1.EndpointPort{Name: name, Port: int32(30000 + i), Protocol: corev1.ProtocolTCP})
	}
	for i := range translate.MaxSourceRanges {
		lb.Spec.LoadBalancerSourceRanges = append(lb.Spec.LoadBalancerSourceRanges, fmt.Sprintf("2001:0db8:1111:2222:3333:4444:5555:%04x/128", i))
	}
	lb.Spec.Endpoints = []v1alpha1.LoadBalancerEndpoints{e}
	lb.Status = statusOf(lb)
	lb.Status.Addresses = []v1alpha1.AllocatedAddress{{Address: fmt.Sprintf("203.0.%d.%d", number>>8, number&255), Pool: "public"}}
	return decoded(lb, &v1alpha1.LoadBalancer{})
}

// statusOf returns the largest status of the LoadBalancer, without addresses.
func statusOf(lb *v1alpha1.LoadBalancer) (out v1alpha1.LoadBalancerStatus) {
	ports, admitted := []string{}, []v1alpha1.AdmittedPort{}
	for _, p := range lb.Spec.Ports {
		ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		admitted = append(admitted, v1alpha1.AdmittedPort{Port: p.Port, Protocol: p.Protocol})
	}
	out.AdmittedPorts, out.Summary = &admitted, &v1alpha1.LoadBalancerSummary{Ports: strings.Join(ports, ",")}
	out.Settings = map[string]string{v1alpha1.AnnotationSourceRanges: strings.Join(lb.Spec.LoadBalancerSourceRanges, ",")}
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionAddressAllocated, v1alpha1.ConditionProgrammed, v1alpha1.ConditionAnnounced, v1alpha1.ConditionServed, v1alpha1.ConditionReady} {
		out.Conditions = append(out.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: "Reason", Message: strings.Repeat("m", 1024)})
	}
	return out
}

// Addresses returns an Addresses object of the tenant. Its status.held has all addresses.
func Addresses(tenant, number int) *v1alpha1.Addresses {
	a := &v1alpha1.Addresses{ObjectMeta: metaOf(tenant, fmt.Sprintf("nodes-%d", number)), Spec: v1alpha1.AddressesSpec{Addresses: targets(tenant, LoadBalancers+number)}}
	for _, target := range a.Spec.Addresses {
		a.Status.Held = append(a.Status.Held, target.IP)
	}
	return decoded(a, &v1alpha1.Addresses{})
}

func metaOf(tenant int, name string) metav1.ObjectMeta {
	namespace := v1alpha1.TenantNamespacePrefix + tenantName(tenant)
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name), ResourceVersion: "1", Generation: 1, Finalizers: []string{v1alpha1.CleanupFinalizer},
		Labels: map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: name}}
}

// targets returns IPv6 addresses without zeros, which have the longest texts.
func targets(tenant, list int) []v1alpha1.EndpointAddress {
	out := make([]v1alpha1.EndpointAddress, translate.MaxTargets)
	for i := range out {
		out[i].IP = fmt.Sprintf("fd%02x:1111:1111:1111:1111:1111:%04x:%04x", tenant, 0x1000+list, 0x1000+i)
	}
	return out
}

// decoded returns the object as decoded from an API server's answer: it shares no string with another object.
func decoded[T any](from, to T) T {
	text, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		panic(err) // cannot fail: the types are made for JSON
	}
	return to
}
