package convert

import (
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// pack packs the targets of a LoadBalancer into less memory. It may be called again for the same object. OwnTargets returns them.
func pack(lb *v1alpha1.LoadBalancer) {
	if len(lb.Spec.Endpoints) == 0 || isPacked(lb) {
		return
	}
	e := &lb.Spec.Endpoints[0]
	trimAddresses(e.Addresses)
	if e.LocalAddresses != nil {
		trimAddresses(*e.LocalAddresses)
	}
	own, local := OwnTargets(lb)
	e.Packed = v1alpha1.PackedTargets{ResourceVersion: lb.ResourceVersion, Addresses: string(own), Local: string(local)}
	if e.Addresses = nil; e.LocalAddresses != nil {
		e.LocalAddresses = &[]v1alpha1.EndpointAddress{}
	}
}

// isPacked reports whether the targets are packed. If another version has been decoded into the object since, its lists count, even if they are empty.
func isPacked(lb *v1alpha1.LoadBalancer) bool {
	packed := lb.Spec.Endpoints[0].Packed
	return packed != (v1alpha1.PackedTargets{}) && packed.ResourceVersion == lb.ResourceVersion
}

// OwnTargets returns the two lists of targets in a LoadBalancer itself, from a cache or not.
func OwnTargets(lb *v1alpha1.LoadBalancer) (own, local translate.Packed) {
	if len(lb.Spec.Endpoints) == 0 {
		return "", ""
	}
	e := lb.Spec.Endpoints[0]
	if isPacked(lb) {
		return translate.Packed(e.Packed.Addresses), translate.Packed(e.Packed.Local)
	}
	own = translate.Pack(addresses(e.Addresses))
	if e.LocalAddresses != nil {
		local = translate.Pack(addresses(*e.LocalAddresses))
	}
	return own, local
}

// targets converts the targets, in lists or packed.
func targets(lb *v1alpha1.LoadBalancer, out *translate.LoadBalancer) {
	if len(lb.Spec.Endpoints) == 0 {
		return
	}
	e := &lb.Spec.Endpoints[0]
	if isPacked(lb) {
		out.Packed.Addresses, out.Packed.Local = OwnTargets(lb)
	} else {
		out.Addresses = addresses(e.Addresses)
	}
	if e.LocalAddresses != nil {
		local := addresses(*e.LocalAddresses) // empty if they are packed
		out.Local = &local
	}
}

// HasOwnTargets reports whether one of the lists has an entry.
func HasOwnTargets(lb *v1alpha1.LoadBalancer) bool {
	if len(lb.Spec.Endpoints) == 0 {
		return false
	}
	e := lb.Spec.Endpoints[0]
	if isPacked(lb) {
		return e.Packed.Addresses != "" || e.Packed.Local != ""
	}
	return len(e.Addresses) > 0 || e.LocalAddresses != nil && len(*e.LocalAddresses) > 0
}
