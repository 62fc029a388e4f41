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

// Service is a tenant's Service, as far as translation needs it.
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
	// LoadBalancerIP is the deprecated field, RequestedAnnotation its successor, which may name an address of each family.
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

// ServicePort is a port of a Service; NodePort is 0 where there is none.
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

// Owns reports whether the Service is ours: of type LoadBalancer and of our class; without a class only when
// classRequired is false. The Services of other classes are never touched.
func Owns(s Service, classRequired bool) bool {
	_, ours := Owned(s, classRequired)
	return ours
}

// Owned is Owns with the reason why the Service is not ours.
func Owned(s Service, classRequired bool) (Problem, bool) {
	switch {
	case s.Type != typeLoadBalancer:
		return Problem{Reason: ReasonNotLoadBalancer, Field: "spec.type",
			Message: fmt.Sprintf("spec.type is %s: only Services of type LoadBalancer get an external address", cmp.Or(s.Type, "ClusterIP"))}, false
	case s.Class == nil && classRequired:
		return Problem{Reason: ReasonOtherClass, Field: "spec.loadBalancerClass",
			Message: "spec.loadBalancerClass is not set, and only Services of class " + Class + " are taken here; set it"}, false
	case s.Class != nil && *s.Class != Class:
		return Problem{Reason: ReasonOtherClass, Field: "spec.loadBalancerClass",
			Message: fmt.Sprintf("spec.loadBalancerClass is %s: that is another controller's; ours is %s", *s.Class, Class)}, false
	}
	return Problem{}, true
}

// excludeLabel is the well-known label that keeps a node out of load balancers.
const excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"

// toBeDeletedTaint is set by the cluster autoscaler on a node that it is about to delete.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// Eligible reports whether the node may take external traffic, as Kubernetes' service controller decides (KEP-3458):
// readiness is no criterion, health checks see to that. The label's value counts as a bool; what cannot be parsed excludes.
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

// NodeAddresses returns the addresses of the given type of all eligible nodes, sorted and unique. IP addresses come as
// IP, names as Hostname.
func NodeAddresses(nodes []Node, addressType string) []Address {
	addresses := []Address{}
	for _, n := range nodes {
		if Eligible(n) {
			addresses = append(addresses, n.ofType(addressType)...)
		}
	}
	slices.SortFunc(addresses, compareAddresses)
	return slices.Compact(addresses)
}

func (n Node) ofType(addressType string) []Address {
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

// Wish translates a Service into the LoadBalancer that the tenant asks of the hub, in the given namespace there. Nodes, by
// name, count for a Service whose policy is Local, as do its slices. Ports and settings that cannot be read are left out, each with a
// problem; when no port is left the problem of the first is not partial.
func Wish(s Service, nodes map[string]Node, slicesOfService []Slice, addressType, hubNamespace string) (LoadBalancer, []Problem) {
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
	if problem, too := tooManyPorts(len(lb.Ports)); too {
		problems = append(problems, problem)
	}
	return lb, append(problems, lb.set(s)...)
}

// set takes over the settings of the Service that are words and may be wrong.
func (lb *LoadBalancer) set(s Service) (problems []Problem) {
	field := "spec.loadBalancerSourceRanges"
	if len(s.SourceRanges) == 0 {
		field = "metadata.annotations." + annotationSourceRanges
	}
	if problem, too := tooManySourceRanges(field, lb.SourceRanges); too {
		problems = append(problems, problem)
	}
	if len(s.SourceRanges) == 0 {
		problems = append(problems, invalidSourceRanges(field, lb.SourceRanges)...)
	}
	for _, word := range []struct{ annotation, wrong string }{{AnnotationAddressPool, PoolName(s.AddressPool)}, {AnnotationSharingKey, SharingKey(s.SharingKey)}} {
		if word.wrong != "" {
			field := "metadata.annotations." + word.annotation
			problems = append(problems, Problem{Reason: ReasonInvalidAnnotation, Field: field, Message: field + " " + word.wrong})
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
	if _, valid := IdleTimeout(s.IdleTimeout); valid {
		lb.IdleTimeout = s.IdleTimeout
	} else if s.IdleTimeout != "" {
		problems = append(problems, InvalidIdleTimeout("metadata.annotations."+AnnotationIdleTimeout, s.IdleTimeout))
	}
	return problems
}

// invalidSourceRanges are problems of the annotation: what stands in the field the tenant's API server has read. Few are named.
func invalidSourceRanges(field string, ranges []string) []Problem {
	var wrong []string
	for _, text := range ranges {
		if _, valid := SourceRange(text); !valid {
			wrong = append(wrong, strconv.Quote(text))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return []Problem{{Reason: ReasonInvalidSourceRange, Field: field, Message: fmt.Sprintf("%s has %s in it: use CIDRs such as 192.0.2.0/24, separated by commas", field, phrase.Few(wrong, ", "))}}
}

// familyPolicy: the cluster has decided already which families a Service has. One that would prefer two and got one has
// endpoints of that one only.
func familyPolicy(s Service) ipam.Policy {
	if s.FamilyPolicy == ipam.PreferDualStack && len(s.Families) == 1 {
		return ipam.SingleStack
	}
	return s.FamilyPolicy
}

// requestedAddresses: the annotation, which can name two, beats the deprecated field.
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

// sourceRangesOf: the field wins over the annotation that came before it.
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

// portName is the port's own name or <port>-<protocol>, in lower case, as KubeLB names them.
func portName(p ServicePort) string {
	if p.Name != "" {
		return strings.ToLower(p.Name)
	}
	return fmt.Sprintf("%d-%s", p.Port, strings.ToLower(cmp.Or(p.Protocol, "TCP")))
}

// localNodes are the nodes with a ready endpoint; while no endpoint is ready anywhere, those with one that terminates
// and still serves, as kube-proxy does (KEP-1669).
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
