package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/phrase"
)

// Service has the fields of a tenant's Service that translation needs.
type Service struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Type      string `json:"type,omitempty"`
	// Class is spec.loadBalancerClass; nil when the Service names none.
	Class           *string       `json:"class,omitempty"`
	Headless        bool          `json:"headless,omitempty"`
	Ports           []ServicePort `json:"ports,omitempty"`
	LocalOnly       bool          `json:"localOnly,omitempty"`
	Affinity        bool          `json:"affinity,omitempty"`
	AffinitySeconds int32         `json:"affinitySeconds,omitempty"`
	SourceRanges    []string      `json:"sourceRanges,omitempty"`
	Families        []ipam.Family `json:"families,omitempty"`
	FamilyPolicy    ipam.Policy   `json:"familyPolicy,omitempty"`
	// LoadBalancerIP is the deprecated field. RequestedAnnotation replaces it and may have an address of each family.
	LoadBalancerIP        string `json:"loadBalancerIP,omitempty"`
	RequestedAnnotation   string `json:"requestedAnnotation,omitempty"`
	HealthCheckNodePort   int32  `json:"healthCheckNodePort,omitempty"`
	Forwarding            string `json:"forwarding,omitempty"`
	AddressPool           string `json:"addressPool,omitempty"`
	SharingKey            string `json:"sharingKey,omitempty"`
	ProxyProtocol         string `json:"proxyProtocol,omitempty"`
	IdleTimeout           string `json:"idleTimeout,omitempty"`
	SourceRangeAnnotation string `json:"sourceRangeAnnotation,omitempty"`
}

// ServicePort is a port of a Service. NodePort is 0 if there is none.
type ServicePort struct {
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Port     int32  `json:"port"`
	NodePort int32  `json:"nodePort,omitempty"`
}

// Node is a tenant's node.
type Node struct {
	Name      string            `json:"name"`
	Addresses []NodeAddress     `json:"addresses,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Taints    []string          `json:"taints,omitempty"`
	Deleting  bool              `json:"deleting,omitempty"`
}

// NodeAddress is one entry of a node's status.addresses.
type NodeAddress struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

// Slice is an EndpointSlice of the Service.
type Slice struct {
	Endpoints []SliceEndpoint `json:"endpoints,omitempty"`
}

// SliceEndpoint is one endpoint of a slice.
type SliceEndpoint struct {
	Node        string `json:"node"`
	Ready       bool   `json:"ready,omitempty"`
	Serving     bool   `json:"serving,omitempty"`
	Terminating bool   `json:"terminating,omitempty"`
}

// Class is the loadBalancerClass that this product serves.
const Class = "kubelb"

// Annotations of a Service that translation reads.
const (
	AnnotationForwarding         = "kubelb.k8c.io/forwarding"
	AnnotationProxyProtocol      = "kubelb.k8c.io/proxy-protocol"
	AnnotationIdleTimeout        = "kubelb.k8c.io/idle-timeout"
	AnnotationRequestedAddresses = "kubelb.k8c.io/requested-addresses"
	AnnotationAddressPool        = "kubelb.k8c.io/address-pool"
	AnnotationSharingKey         = "kubelb.k8c.io/sharing-key"

	annotationSourceRanges = "service.beta.kubernetes.io/load-balancer-source-ranges"
)

// Reasons of problems on the tenant's side.
const (
	ReasonHeadless   = "HeadlessService"
	ReasonOtherClass = "OtherClass"
)

// Owns reports whether KubeLB serves the Service: whether it is of type LoadBalancer and of class kubelb, or has no class
// and classRequired is false. Services of other classes are never touched.
func Owns(s Service, classRequired bool) bool {
	_, owned := OwnsWithReason(s, classRequired)
	return owned
}

// OwnsWithReason is Owns, and also returns the reason if KubeLB does not serve the Service.
func OwnsWithReason(s Service, classRequired bool) (Problem, bool) {
	switch {
	case s.Type != typeLoadBalancer:
		return Problem{Reason: ReasonNotLoadBalancer, Field: "spec.type",
			Message: fmt.Sprintf("spec.type is %s: only Services of type LoadBalancer get an external address", cmp.Or(s.Type, "ClusterIP"))}, false
	case s.Class == nil && classRequired:
		return Problem{Reason: ReasonOtherClass, Field: "spec.loadBalancerClass",
			Message: "spec.loadBalancerClass is not set, and only Services of class " + Class + " are served here; set it to " + Class}, false
	case s.Class != nil && *s.Class != Class:
		return Problem{Reason: ReasonOtherClass, Field: "spec.loadBalancerClass",
			Message: fmt.Sprintf("spec.loadBalancerClass is %s, which another controller serves; set it to %s for this one", *s.Class, Class)}, false
	}
	return Problem{}, true
}

// excludeLabel is the well-known label that keeps a node out of load balancers.
const excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"

// toBeDeletedTaint is set by the cluster autoscaler on a node that it is about to delete.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// Eligible reports whether the node may take external traffic, as Kubernetes' service controller decides (KEP-3458).
// Readiness does not count, health checks do. The label's value is parsed as a bool, and an invalid one excludes the node.
func Eligible(n Node) bool {
	if n.Deleting || slices.Contains(n.Taints, toBeDeletedTaint) {
		return false
	}
	value, labelled := n.Labels[excludeLabel]
	if !labelled {
		return true
	}
	excluded, err := strconv.ParseBool(value)
	return err == nil && !excluded
}

// NodeAddresses returns the addresses of the given type of all eligible nodes, sorted and unique.
func NodeAddresses(nodes []Node, addressType string) []Address {
	addresses := []Address{}
	for _, n := range nodes {
		if Eligible(n) {
			addresses = append(addresses, n.addressesOfType(addressType)...)
		}
	}
	slices.SortFunc(addresses, compareAddresses)
	return slices.Compact(addresses)
}

func (n Node) addressesOfType(addressType string) []Address {
	var addresses []Address
	for _, a := range n.Addresses {
		if a.Type != addressType {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			addresses = append(addresses, Address{IP: ip.Unmap().String()})
		} else {
			addresses = append(addresses, Address{Hostname: a.Address})
		}
	}
	return addresses
}

func compareAddresses(a, b Address) int {
	x, _ := netip.ParseAddr(a.IP)
	y, _ := netip.ParseAddr(b.IP)
	return cmp.Or(x.Compare(y), cmp.Compare(a.Hostname, b.Hostname))
}

// DesiredLoadBalancer translates a Service into the LoadBalancer that the tenant requests from the hub, in the given namespace there. nodes, by name, and
// the slices are used only for a Service with policy Local. Ports and settings that are invalid are left out, each with a problem. If no port is
// left, the problem of the first is not partial.
func DesiredLoadBalancer(s Service, nodes map[string]Node, slicesOfService []Slice, addressType, hubNamespace string) (LoadBalancer, []Problem) {
	lb := LoadBalancer{
		ObjectName:      model.ObjectName{Namespace: hubNamespace, Name: s.UID},
		OriginNamespace: s.Namespace, OriginName: s.Name,
		Type:      typeLoadBalancer,
		Reference: &model.ObjectName{Name: DefaultAddresses},
		LocalOnly: s.LocalOnly,
		Affinity:  s.Affinity, AffinitySeconds: s.AffinitySeconds,
		SourceRanges: sourceRangesOf(s),
		Families:     s.Families, FamilyPolicy: familyPolicy(s), AddressPool: s.AddressPool, SharingKey: s.SharingKey,
	}
	var problems []Problem
	if s.Headless {
		return lb, []Problem{{Reason: ReasonHeadless, Field: "spec.clusterIP", Message: "spec.clusterIP is None: a headless Service has no NodePorts to forward to; remove it"}}
	}
	for i, p := range s.Ports {
		if _, ok := model.ParseProtocol(p.Protocol); !ok {
			problems = append(problems, Problem{Reason: ReasonUnsupportedProtocol, Field: fmt.Sprintf("spec.ports[%d].protocol", i), Partial: true,
				Message: fmt.Sprintf("port %s (%d): protocol %s cannot be load-balanced, only TCP and UDP", portName(p), p.Port, p.Protocol)})
			continue
		}
		lb.Ports = append(lb.Ports, Port{portName(p), p.Port, cmp.Or(p.Protocol, "TCP")})
		lb.EndpointPorts = append(lb.EndpointPorts, Port{portName(p), p.NodePort, cmp.Or(p.Protocol, "TCP")})
	}
	if len(lb.Ports) == 0 && len(problems) > 0 {
		problems[0].Partial = false
	}
	if s.LocalOnly {
		local := NodeAddresses(localNodes(nodes, slicesOfService), addressType)
		lb.Local, lb.HealthCheckNodePort = &local, s.HealthCheckNodePort
	}
	if problem, found := tooManyPorts(len(lb.Ports)); found {
		problems = append(problems, problem)
	}
	return lb, append(problems, lb.applySettings(s)...)
}

// applySettings copies the settings of the Service that are texts, and returns problems for invalid ones.
func (lb *LoadBalancer) applySettings(s Service) (problems []Problem) {
	field := "spec.loadBalancerSourceRanges"
	if len(s.SourceRanges) == 0 {
		field = "metadata.annotations." + annotationSourceRanges
	}
	if problem, found := tooManySourceRanges(field, lb.SourceRanges); found {
		problems = append(problems, problem)
	}
	if len(s.SourceRanges) == 0 {
		problems = append(problems, invalidSourceRanges(field, lb.SourceRanges)...)
	}
	for _, setting := range []struct{ annotation, problem string }{{AnnotationAddressPool, ValidatePoolName(s.AddressPool)}, {AnnotationSharingKey, ValidateSharingKey(s.SharingKey)}} {
		if setting.problem != "" {
			field := "metadata.annotations." + setting.annotation
			problems = append(problems, Problem{Reason: ReasonInvalidAnnotation, Field: field, Message: field + " " + setting.problem})
		}
	}
	requested, problem := requestedAddresses(s)
	if problem != nil {
		problems = append(problems, *problem)
	}
	lb.Requested = requested
	if s.Forwarding == "" || slices.Contains(forwardings, s.Forwarding) {
		lb.Forwarding = s.Forwarding
	} else {
		field := "metadata.annotations." + AnnotationForwarding
		problems = append(problems, Problem{Reason: ReasonInvalidForwarding, Field: field, Message: fmt.Sprintf("%s is %q: use one of %s", field, s.Forwarding, strings.Join(forwardings, ", "))})
	}
	if s.ProxyProtocol == "" || s.ProxyProtocol == ProxyProtocolV2 {
		lb.ProxyProtocol = s.ProxyProtocol
	} else {
		problems = append(problems, InvalidProxyProtocol("metadata.annotations."+AnnotationProxyProtocol, s.ProxyProtocol))
	}
	if _, valid := ParseIdleTimeout(s.IdleTimeout); valid {
		lb.IdleTimeout = s.IdleTimeout
	} else if s.IdleTimeout != "" {
		problems = append(problems, InvalidIdleTimeout("metadata.annotations."+AnnotationIdleTimeout, s.IdleTimeout))
	}
	return problems
}

// invalidSourceRanges returns the problem of invalid networks in the annotation. The tenant's API server checks those in the field.
func invalidSourceRanges(field string, ranges []string) []Problem {
	var invalid []string
	for _, text := range ranges {
		if _, valid := ParseSourceRange(text); !valid {
			invalid = append(invalid, strconv.Quote(text))
		}
	}
	if len(invalid) == 0 {
		return nil
	}
	return []Problem{{Reason: ReasonInvalidSourceRange, Field: field, Message: fmt.Sprintf("%s has %s, which are not networks: use CIDRs such as 192.0.2.0/24, separated by commas", field, phrase.Few(invalid, ", "))}}
}

// familyPolicy returns the policy of the Service. A Service that prefers two families, but got only one from its cluster, has
// endpoints of that family only, so it requests one.
func familyPolicy(s Service) ipam.Policy {
	if s.FamilyPolicy == ipam.PreferDualStack && len(s.Families) == 1 {
		return ipam.SingleStack
	}
	return s.FamilyPolicy
}

// requestedAddresses returns the addresses in the annotation, which can have two, or else in the deprecated field.
func requestedAddresses(s Service) ([]netip.Addr, *Problem) {
	field, text := "metadata.annotations."+AnnotationRequestedAddresses, s.RequestedAnnotation
	if strings.TrimSpace(text) == "" {
		field, text = "spec.loadBalancerIP", s.LoadBalancerIP
	}
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var addresses []netip.Addr
	for _, part := range strings.Split(text, ",") {
		address, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil || address.Zone() != "" || address.Is4In6() {
			return nil, &Problem{Reason: ReasonInvalidAddress, Field: field, Message: fmt.Sprintf(
				"requested address %q in %s is not an IP address: name one, or one of each family, separated by a comma", part, field)}
		}
		if slices.ContainsFunc(addresses, func(a netip.Addr) bool { return a.Is4() == address.Is4() }) {
			return nil, &Problem{Reason: ReasonInvalidAddress, Field: field, Message: fmt.Sprintf("%s has more than one address of a family: name one, or one of each family", field)}
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}

// sourceRangesOf returns the networks in the field, or else in the older annotation.
func sourceRangesOf(s Service) []string {
	ranges := s.SourceRanges
	if len(ranges) == 0 && strings.TrimSpace(s.SourceRangeAnnotation) != "" {
		ranges = strings.Split(s.SourceRangeAnnotation, ",")
	}
	trimmed := make([]string, len(ranges))
	for i, r := range ranges {
		trimmed[i] = strings.TrimSpace(r)
	}
	return trimmed
}

// portName returns the port's own name or <port>-<protocol>, in lower case, as in KubeLB.
func portName(p ServicePort) string {
	if p.Name != "" {
		return strings.ToLower(p.Name)
	}
	return fmt.Sprintf("%d-%s", p.Port, strings.ToLower(cmp.Or(p.Protocol, "TCP")))
}

// localNodes returns the nodes with a ready endpoint. If no endpoint is ready on any node, it returns the nodes with an
// endpoint that terminates and still serves, as kube-proxy does (KEP-1669).
func localNodes(nodes map[string]Node, slicesOfService []Slice) []Node {
	ready, serving := map[string]bool{}, map[string]bool{}
	for _, slice := range slicesOfService {
		for _, e := range slice.Endpoints {
			if _, known := nodes[e.Node]; !known {
				continue
			}
			if e.Ready {
				ready[e.Node] = true
			} else if e.Serving && e.Terminating {
				serving[e.Node] = true
			}
		}
	}
	names := ready
	if len(ready) == 0 {
		names = serving
	}
	local := make([]Node, 0, len(names))
	for name := range names {
		local = append(local, nodes[name])
	}
	return local
}
