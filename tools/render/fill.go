package render

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelb.k8c.io/api/v1alpha1"
)

// lowestNodePort is the first port of Kubernetes' default range of NodePorts.
const lowestNodePort = 30000

// filler sets fields that an API server or an operator would have set, always in the same way, and records its assumptions.
type filler struct {
	assumed []string
	taken   map[int32]bool
}

func (f *filler) assume(format string, args ...any) {
	f.assumed = append(f.assumed, fmt.Sprintf(format, args...))
}

// services sets fields that the tenant's API server would set.
func (f *filler) services(services []*corev1.Service, nodes []*corev1.Node) {
	f.taken = map[int32]bool{}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			f.taken[p.NodePort] = true
		}
		f.taken[s.Spec.HealthCheckNodePort] = true
	}
	families := clusterFamilies(nodes)
	for _, s := range services {
		if s.Namespace == "" {
			s.Namespace = metav1.NamespaceDefault
		}
		if s.UID == "" {
			s.UID = uidOf(s)
		}
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			f.nodePorts(s)
			fillFamilies(s, families)
		}
	}
}

// uidOf returns a UID that is always the same for a Service, and readable.
func uidOf(s *corev1.Service) types.UID { return types.UID("uid-of-" + s.Namespace + "." + s.Name) }

func (f *filler) nodePorts(s *corev1.Service) {
	if s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts {
		for i := range s.Spec.Ports {
			if p := &s.Spec.Ports[i]; p.NodePort == 0 {
				p.NodePort = f.nextNodePort()
				f.assume("Service %s/%s: spec.ports[%d].nodePort is %d", s.Namespace, s.Name, i, p.NodePort)
			}
		}
	}
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && s.Spec.HealthCheckNodePort == 0 {
		s.Spec.HealthCheckNodePort = f.nextNodePort()
		f.assume("Service %s/%s: spec.healthCheckNodePort is %d", s.Namespace, s.Name, s.Spec.HealthCheckNodePort)
	}
}

func (f *filler) nextNodePort() int32 {
	port := int32(lowestNodePort)
	for f.taken[port] {
		port++
	}
	f.taken[port] = true
	return port
}

// clusterFamilies returns the address families of the first node with addresses, in the node's order.
func clusterFamilies(nodes []*corev1.Node) []corev1.IPFamily {
	var families []corev1.IPFamily
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			address, err := netip.ParseAddr(a.Address)
			if err != nil {
				continue
			}
			family := corev1.IPv4Protocol
			if address.Is6() {
				family = corev1.IPv6Protocol
			}
			if !slices.Contains(families, family) {
				families = append(families, family)
			}
		}
		if len(families) > 0 {
			return families
		}
	}
	return []corev1.IPFamily{corev1.IPv4Protocol}
}

// fillFamilies sets the address families like the API server, if the Service does not name them (KEP-563).
func fillFamilies(s *corev1.Service, cluster []corev1.IPFamily) {
	if s.Spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if len(s.Spec.IPFamilies) == 2 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		s.Spec.IPFamilyPolicy = &policy
	}
	want := 1
	if *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
		want = len(cluster)
	}
	for _, family := range cluster {
		if len(s.Spec.IPFamilies) < want && !slices.Contains(s.Spec.IPFamilies, family) {
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, family)
		}
	}
}

// hub adds missing tenants and pools. The tenants may target any address. The pools have the address ranges for documentation
// (RFC 5737, RFC 3849).
func (f *filler) hub(r *Result, tenants []string) {
	if len(r.tenants) == 0 {
		for _, name := range tenants {
			r.tenants = append(r.tenants, &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"0.0.0.0/0", "::/0"}}})
			f.assume("Tenant %s: spec.backendCIDRs allows every address", name)
		}
	}
	if len(r.pools) == 0 {
		addresses := []string{"203.0.113.0/24", "2001:db8:f::/120"}
		r.pools = append(r.pools, &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "example"}, Spec: v1alpha1.AddressPoolSpec{Addresses: addresses}})
		f.assume("AddressPool example: spec.addresses is %s", strings.Join(addresses, ", "))
	}
}
