package validation

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// maxAffinity is the highest timeout of session affinity, in seconds.
const maxAffinity = 86400

// service checks the fields of a Service that matter for load balancing.
func service(s *corev1.Service) field.ErrorList {
	spec := field.NewPath("spec")
	errs := objectMeta(&s.ObjectMeta, true, validation.NameIsDNSLabel)
	errs = append(errs, servicePorts(s, spec.Child("ports"))...)
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ClusterIP == corev1.ClusterIPNone {
		errs = append(errs, field.Invalid(spec.Child("clusterIPs").Index(0), s.Spec.ClusterIP, "may not be set to 'None' for LoadBalancer services"))
	}
	errs = append(errs, metavalidation.ValidateLabels(s.Spec.Selector, spec.Child("selector"))...)
	errs = append(errs, oneOf(spec.Child("type"), s.Spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	errs = append(errs, affinity(s, spec)...)
	errs = append(errs, families(s, spec)...)
	errs = append(errs, trafficPolicies(s, spec)...)
	return append(errs, loadBalancerFields(s, spec)...)
}

// objectMeta checks metadata. An object without a namespace is in the default namespace.
func objectMeta(meta *metav1.ObjectMeta, namespaced bool, name validation.ValidateNameFunc) field.ErrorList {
	checked := meta.DeepCopy()
	if namespaced && checked.Namespace == "" {
		checked.Namespace = metav1.NamespaceDefault // the default of kubectl
	}
	return validation.ValidateObjectMeta(checked, namespaced, name, field.NewPath("metadata"))
}

// oneOf checks a field whose value is empty or one of the supported ones.
func oneOf[T ~string](path *field.Path, value T, supported ...T) field.ErrorList {
	if value == "" || sets.New(supported...).Has(value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, supported)}
}

func servicePorts(s *corev1.Service, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone && s.Spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(path, ""))
	}
	names := sets.New[string]()
	for i, p := range s.Spec.Ports {
		errs = append(errs, servicePort(p, len(s.Spec.Ports) > 1, names, path.Index(i))...)
	}
	return append(errs, duplicatePorts(s, path)...)
}

// duplicatePorts checks for duplicate pairs of protocol and port, or of protocol and NodePort.
func duplicatePorts(s *corev1.Service, path *field.Path) field.ErrorList {
	type key struct {
		protocol corev1.Protocol
		number   int32
	}
	var errs field.ErrorList
	ports, nodePorts := sets.New[key](), sets.New[key]()
	for i, p := range s.Spec.Ports {
		if p.NodePort != 0 && s.Spec.Type == corev1.ServiceTypeClusterIP {
			errs = append(errs, field.Forbidden(path.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
		}
		if k := (key{protocolOf(p), p.NodePort}); p.NodePort != 0 && nodePorts.Has(k) {
			errs = append(errs, field.Duplicate(path.Index(i).Child("nodePort"), p.NodePort))
		} else {
			nodePorts.Insert(k)
		}
		k := key{protocolOf(p), p.Port}
		if ports.Has(k) {
			errs = append(errs, field.Duplicate(path.Index(i), fmt.Sprintf("%d/%s", p.Port, k.protocol)))
		}
		ports.Insert(k)
	}
	return errs
}

// protocolOf returns the port's protocol, or the default.
func protocolOf(p corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

func servicePort(p corev1.ServicePort, named bool, names sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch {
	case p.Name == "" && named:
		errs = append(errs, field.Required(path.Child("name"), ""))
	case p.Name != "":
		errs = append(errs, invalid(path.Child("name"), p.Name, utilvalidation.IsDNS1123Label(p.Name))...)
		if names.Has(p.Name) {
			errs = append(errs, field.Duplicate(path.Child("name"), p.Name))
		}
		names.Insert(p.Name)
	}
	errs = append(errs, invalid(path.Child("port"), p.Port, utilvalidation.IsValidPortNum(int(p.Port)))...)
	errs = append(errs, oneOf(path.Child("protocol"), p.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
	target := path.Child("targetPort")
	switch {
	case p.TargetPort.Type == intstr.String:
		errs = append(errs, invalid(target, p.TargetPort.StrVal, utilvalidation.IsValidPortName(p.TargetPort.StrVal))...)
	case p.TargetPort.IntVal != 0:
		errs = append(errs, invalid(target, p.TargetPort.IntVal, utilvalidation.IsValidPortNum(int(p.TargetPort.IntVal)))...)
	}
	if p.AppProtocol != nil {
		errs = append(errs, invalid(path.Child("appProtocol"), *p.AppProtocol, utilvalidation.IsQualifiedName(*p.AppProtocol))...)
	}
	return errs
}

func invalid(path *field.Path, value any, messages []string) (errs field.ErrorList) {
	for _, message := range messages {
		errs = append(errs, field.Invalid(path, value, message))
	}
	return errs
}

func affinity(s *corev1.Service, spec *field.Path) field.ErrorList {
	errs := oneOf(spec.Child("sessionAffinity"), s.Spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	config := s.Spec.SessionAffinityConfig
	if config == nil || s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP { // the API server ignores the configuration then
		return errs
	}
	path := spec.Child("sessionAffinityConfig")
	if config.ClientIP != nil && config.ClientIP.TimeoutSeconds != nil && (*config.ClientIP.TimeoutSeconds <= 0 || *config.ClientIP.TimeoutSeconds > maxAffinity) {
		errs = append(errs, field.Invalid(path.Child("clientIP", "timeoutSeconds"), *config.ClientIP.TimeoutSeconds, fmt.Sprintf("must be greater than 0 and less than %d", maxAffinity)))
	}
	return errs
}

func families(s *corev1.Service, spec *field.Path) field.ErrorList {
	var errs field.ErrorList
	path := spec.Child("ipFamilies")
	seen := sets.New[corev1.IPFamily]()
	for i, family := range s.Spec.IPFamilies {
		if family != corev1.IPv4Protocol && family != corev1.IPv6Protocol {
			errs = append(errs, field.NotSupported(path.Index(i), family, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}))
		}
		if seen.Has(family) {
			errs = append(errs, field.Duplicate(path.Index(i), family))
		}
		seen.Insert(family)
	}
	errs = append(errs, clusterIPs(s, spec.Child("clusterIPs"))...)
	if policy := s.Spec.IPFamilyPolicy; policy != nil {
		errs = append(errs, oneOf(spec.Child("ipFamilyPolicy"), *policy, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)...)
		if *policy == corev1.IPFamilyPolicySingleStack && len(s.Spec.IPFamilies) == 2 {
			errs = append(errs, field.Invalid(spec.Child("ipFamilyPolicy"), *policy, "must be RequireDualStack or PreferDualStack when multiple `ipFamilies` are specified"))
		}
	}
	return errs
}

// clusterIPs checks that cluster IPs are of the Service's families, in their order.
func clusterIPs(s *corev1.Service, path *field.Path) (errs field.ErrorList) {
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	for i, ip := range ips {
		if ip == corev1.ClusterIPNone || i >= len(s.Spec.IPFamilies) {
			continue
		}
		if found := utilvalidation.IsValidIPForLegacyField(path.Index(i), ip, false, nil); len(found) > 0 {
			errs = append(errs, found...)
			continue
		}
		if family := s.Spec.IPFamilies[i]; netutils.IsIPv6String(ip) != (family == corev1.IPv6Protocol) {
			errs = append(errs, field.Invalid(path.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", family, i)))
		}
	}
	return errs
}

func trafficPolicies(s *corev1.Service, spec *field.Path) field.ErrorList {
	external := s.Spec.ExternalTrafficPolicy
	path := spec.Child("externalTrafficPolicy")
	errs := oneOf(path, external, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	if s.Spec.InternalTrafficPolicy != nil {
		errs = append(errs, oneOf(spec.Child("internalTrafficPolicy"), *s.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	if distribution := s.Spec.TrafficDistribution; distribution != nil {
		errs = append(errs, oneOf(spec.Child("trafficDistribution"), *distribution, corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameNode, corev1.ServiceTrafficDistributionPreferSameZone)...)
	}
	exposed := s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeNodePort || len(s.Spec.ExternalIPs) > 0
	if !exposed && external != "" {
		errs = append(errs, field.Invalid(path, external, "may only be set for externally-accessible services"))
	}
	port := s.Spec.HealthCheckNodePort
	if port != 0 && s.Spec.Type == corev1.ServiceTypeLoadBalancer && external == corev1.ServiceExternalTrafficPolicyLocal {
		errs = append(errs, invalid(spec.Child("healthCheckNodePort"), port, utilvalidation.IsValidPortNum(int(port)))...)
	}
	if port != 0 && (s.Spec.Type != corev1.ServiceTypeLoadBalancer || external != corev1.ServiceExternalTrafficPolicyLocal) {
		errs = append(errs, field.Invalid(spec.Child("healthCheckNodePort"), port, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
	}
	return errs
}

// loadBalancerFields checks the fields that only a Service of type LoadBalancer may have.
func loadBalancerFields(s *corev1.Service, spec *field.Path) field.ErrorList {
	const only = "may only be used when `type` is 'LoadBalancer'"
	var errs field.ErrorList
	isLoadBalancer := s.Spec.Type == corev1.ServiceTypeLoadBalancer
	ranges := spec.Child("LoadBalancerSourceRanges") // the API server's spelling
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		if !isLoadBalancer {
			errs = append(errs, field.Forbidden(ranges, only))
		}
		for i, text := range s.Spec.LoadBalancerSourceRanges {
			errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(ranges.Index(i), strings.TrimSpace(text), false, nil)...)
		}
	} else if text, set := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; set {
		path := field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
		if !isLoadBalancer {
			errs = append(errs, field.Forbidden(path, only))
		}
		if text = strings.TrimSpace(text); text != "" {
			for _, cidr := range strings.Split(text, ",") {
				errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(path, strings.TrimSpace(cidr), false, nil)...)
			}
		}
	}
	if class := s.Spec.LoadBalancerClass; class != nil && !isLoadBalancer {
		errs = append(errs, field.Forbidden(spec.Child("loadBalancerClass"), only))
	} else if class != nil {
		errs = append(errs, invalid(spec.Child("loadBalancerClass"), *class, utilvalidation.IsQualifiedName(*class))...)
	}
	if s.Spec.AllocateLoadBalancerNodePorts != nil && !isLoadBalancer {
		errs = append(errs, field.Forbidden(spec.Child("allocateLoadBalancerNodePorts"), only))
	}
	return errs
}
