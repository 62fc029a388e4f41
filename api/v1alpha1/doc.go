// Package v1alpha1 holds the objects of the group kubelb.k8c.io on the management cluster.
//
// A tenant's CCM writes LoadBalancer and Addresses into the namespace of its tenant. The controllers write the status of
// LoadBalancer. Operators write Tenant, AddressPool and BGPPeer. Each gateway writes its own Gateway. The group, the kinds and the
// fields that KubeLB defines keep KubeLB's names and meaning. All other fields are optional.
//
// +kubebuilder:object:generate=true
// +groupName=kubelb.k8c.io
package v1alpha1
