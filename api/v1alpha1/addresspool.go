package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AddressPool is a set of external addresses that the manager may give to LoadBalancers.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=vippool,categories=kubelb
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Auto-Assign",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Used4",type=integer,JSONPath=`.status.ipv4.used`
// +kubebuilder:printcolumn:name="Free4",type=string,JSONPath=`.status.ipv4.free`
// +kubebuilder:printcolumn:name="Used6",type=integer,JSONPath=`.status.ipv6.used`
// +kubebuilder:printcolumn:name="Free6",type=string,JSONPath=`.status.ipv6.free`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AddressPoolSpec   `json:"spec"`
	Status AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolSpec lists the addresses and who may have them.
type AddressPoolSpec struct {
	// Addresses are CIDRs (203.0.113.0/24) or ranges (203.0.113.10-203.0.113.20), of both families.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.all(r, isCIDR(r) || (r.split('-').size() == 2 && isIP(r.split('-')[0]) && isIP(r.split('-')[1]) && ip(r.split('-')[0]).family() == ip(r.split('-')[1]).family()))",message="spec.addresses: each entry must be a CIDR (203.0.113.0/24) or a range of one family (203.0.113.10-203.0.113.20)"
	Addresses []string `json:"addresses"`

	// Tenants are the names of the tenants that may use the pool. Empty means all.
	// +optional
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MaxLength=63
	Tenants []string `json:"tenants,omitempty"`

	// AutoAssign allows the manager to take addresses from here for LoadBalancers that ask for none. When false, an
	// address of this pool must be asked for.
	// +optional
	// +kubebuilder:default=true
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// Priority: of the pools that may serve a LoadBalancer the one of the highest priority gives the address, of equal ones the
	// oldest.
	// +optional
	Priority int32 `json:"priority,omitempty"`

	// Draining: the pool gives no address any more. Those that LoadBalancers hold they keep.
	// +optional
	Draining bool `json:"draining,omitempty"`

	// ReserveRequestedFor is how long an address that a LoadBalancer asked for by name is kept for its tenant once that LoadBalancer is
	// deleted, so that a Service that is made anew gets it again. 5m unless it is set; 0s keeps none.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('168h')",message="spec.reserveRequestedFor: 0s to 168h"
	ReserveRequestedFor *metav1.Duration `json:"reserveRequestedFor,omitempty"`

	// GatewaySelector chooses, by the labels of Gateway objects, which gateways announce the pool's addresses. Empty means all. Addresses
	// that the pool has given and has no more stay with these gateways.
	// +optional
	GatewaySelector *metav1.LabelSelector `json:"gatewaySelector,omitempty"`

	// AvoidNetworkAddresses leaves out the first and the last address of each IPv4 CIDR (network and broadcast
	// address) and the first address of each IPv6 CIDR (subnet-router anycast, RFC 4291). Ranges and single addresses
	// are taken as they stand.
	// +optional
	// +kubebuilder:default=true
	AvoidNetworkAddresses *bool `json:"avoidNetworkAddresses,omitempty"`
}

// AddressPoolStatus counts addresses by family.
type AddressPoolStatus struct {
	// +optional
	IPv4 *AddressCount `json:"ipv4,omitempty"`
	// +optional
	IPv6 *AddressCount `json:"ipv6,omitempty"`
	// Addresses are the ranges (first-last) that count as external: those of spec, once they have been found to cover no node of a tenant, no
	// gateway, no node of the management cluster and no router. Until then they are those of before. Nodes among them are no targets.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Addresses []string `json:"addresses,omitempty"`
	// Reserved are the addresses that are kept for tenants which had asked for them, up to 1000.
	// +optional
	// +listType=map
	// +listMapKey=address
	// +kubebuilder:validation:MaxItems=1000
	Reserved []ReservedAddress `json:"reserved,omitempty"`
	// Conditions: Ready is false when the pool overlaps another one, or covers addresses that hosts or nodes have; such a pool gives no address.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ReservedAddress is kept for a tenant.
type ReservedAddress struct {
	Address string `json:"address"`
	// Tenant whose it was.
	Tenant string      `json:"tenant"`
	Until  metav1.Time `json:"until"`
}

// DefaultReservation is how long requested addresses are kept where the pool does not say.
const DefaultReservation = 5 * time.Minute

// MaxReserved are on record of a pool.
const MaxReserved = 1000

// AddressCount counts the addresses of one family.
type AddressCount struct {
	// Used is the number of addresses that LoadBalancers hold.
	Used int64 `json:"used"`
	// Free is the number of addresses left, in decimal; IPv6 pools may have more than fit into an integer.
	Free string `json:"free"`
}

// AddressPoolList is a list of AddressPools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressPool `json:"items"`
}
