package convert

import (
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// pack has a LoadBalancer keep its targets in little memory. It may be called again for the same object. OwnTargets finds them.
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

// isPacked: an object into which another version was read since has lists as usual, be they empty.
func isPacked(lb *v1alpha1.LoadBalancer) bool {
	packed := lb.Spec.Endpoints[0].Packed
	return packed != (v1alpha1.PackedTargets{}) && packed.ResourceVersion == lb.ResourceVersion
}

// OwnTargets are the two lists of targets that stand in a LoadBalancer itself, whether it comes from a cache or not.
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

// targets takes the targets as they are, in lists or packed.
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
		local := addresses(*e.LocalAddresses) // none if they are packed
		out.Local = &local
	}
}

// HasOwnTargets tells whether one of the lists has an entry.
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
