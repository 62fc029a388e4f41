// Package v1alpha1 holds the objects of the group kubelb.k8c.io on the management cluster.
//
// A tenant's CCM writes LoadBalancer and Addresses into the namespace of its tenant; the manager answers in
// LoadBalancer.status. Operators write Tenant and AddressPool; each gateway writes its own Gateway. Group, kinds and the
// fields that KubeLB defines keep KubeLB's names and meaning; every field of ours is optional.
//
// +kubebuilder:object:generate=true
// +groupName=kubelb.k8c.io
package v1alpha1
