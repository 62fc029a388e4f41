package validation

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

const (
	// maxEndpoints is how many endpoints an EndpointSlice may have, and maxAddresses how many addresses an endpoint.
	maxEndpoints, maxAddresses = 1000, 100
)

// node checks metadata, taints and addresses of a Node.
func node(n *corev1.Node) field.ErrorList {
	errs := objectMeta(&n.ObjectMeta, false, validation.NameIsDNSSubdomain)
	type taint struct {
		key    string
		effect corev1.TaintEffect
	}
	taints := sets.New[taint]()
	for i, t := range n.Spec.Taints {
		path := field.NewPath("metadata", "taints").Index(i) // the API server's path
		errs = append(errs, invalid(path.Child("key"), t.Key, utilvalidation.IsQualifiedName(t.Key))...)
		if t.Value != "" {
			errs = append(errs, invalid(path.Child("value"), t.Value, utilvalidation.IsValidLabelValue(t.Value))...)
		}
		if t.Effect == "" {
			errs = append(errs, field.Required(path.Child("effect"), ""))
		}
		errs = append(errs, oneOf(path.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
		if k := (taint{t.Key, t.Effect}); taints.Has(k) {
			errs = append(errs, field.Duplicate(path, t.Key))
		} else {
			taints.Insert(k)
		}
	}
	seen := sets.New[corev1.NodeAddress]()
	for i, address := range n.Status.Addresses {
		if seen.Has(address) {
			errs = append(errs, field.Duplicate(field.NewPath("status", "addresses").Index(i), address))
		}
		seen.Insert(address)
	}
	return errs
}

// endpointSlice checks an EndpointSlice.
func endpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	errs := objectMeta(&s.ObjectMeta, true, validation.NameIsDNSSubdomain)
	path := field.NewPath("addressType")
	if s.AddressType == "" {
		errs = append(errs, field.Required(path, ""))
	}
	errs = append(errs, oneOf(path, s.AddressType, discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)...)
	path = field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		return append(errs, field.TooMany(path, len(s.Endpoints), maxEndpoints))
	}
	for i, e := range s.Endpoints {
		errs = append(errs, endpoint(e, s.AddressType, path.Index(i))...)
	}
	return errs
}

func endpoint(e discoveryv1.Endpoint, kind discoveryv1.AddressType, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	addresses := path.Child("addresses")
	switch {
	case len(e.Addresses) == 0:
		errs = append(errs, field.Required(addresses, "must contain at least 1 address"))
	case len(e.Addresses) > maxAddresses:
		errs = append(errs, field.TooMany(addresses, len(e.Addresses), maxAddresses))
	}
	for i, address := range e.Addresses {
		at := addresses.Index(i)
		switch kind {
		case discoveryv1.AddressTypeFQDN:
			errs = append(errs, utilvalidation.IsFullyQualifiedDomainName(at, address)...)
		case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
			found := utilvalidation.IsValidIPForLegacyField(at, address, kind == discoveryv1.AddressTypeIPv6, nil)
			if len(found) == 0 {
				found = endpointAddress(address, kind, addresses, at)
			}
			errs = append(errs, found...)
		}
	}
	if e.NodeName != nil {
		errs = append(errs, invalid(path.Child("nodeName"), *e.NodeName, validation.NameIsDNSSubdomain(*e.NodeName, false))...)
	}
	return errs
}

// endpointAddress checks the family and the range of a valid address.
func endpointAddress(address string, kind discoveryv1.AddressType, all, at *field.Path) (errs field.ErrorList) {
	ip := netutils.ParseIPSloppy(address)
	if netutils.IsIPv6(ip) != (kind == discoveryv1.AddressTypeIPv6) {
		errs = append(errs, field.Invalid(all, address, fmt.Sprintf("must be an %s address", kind)))
	}
	switch {
	case ip.IsUnspecified():
		errs = append(errs, field.Invalid(at, address, fmt.Sprintf("may not be unspecified (%v)", address)))
	case ip.IsLoopback():
		errs = append(errs, field.Invalid(at, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)"))
	case ip.IsLinkLocalUnicast():
		errs = append(errs, field.Invalid(at, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"))
	case ip.IsLinkLocalMulticast():
		errs = append(errs, field.Invalid(at, address, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"))
	}
	return errs
}
