package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AddressPool is a set of external addresses that LoadBalancers may get.
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

// AddressPoolSpec has the addresses, and which LoadBalancers may get them.
type AddressPoolSpec struct {
	// Addresses are CIDRs (203.0.113.0/24) or ranges (203.0.113.10-203.0.113.20), of both families.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.all(r, isCIDR(r) || (r.split('-').size() == 2 && isIP(r.split('-')[0]) && isIP(r.split('-')[1]) && ip(r.split('-')[0]).family() == ip(r.split('-')[1]).family()))",message="spec.addresses: each entry must be a CIDR (203.0.113.0/24) or a range of one family (203.0.113.10-203.0.113.20)"
	Addresses []string `json:"addresses"`

	// Tenants are the names of the tenants that may get addresses of this AddressPool. Empty means all.
	// +optional
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MaxLength=63
	Tenants []string `json:"tenants,omitempty"`

	// AutoAssign: LoadBalancers that ask for no address may get one of this AddressPool. If false, only LoadBalancers that ask
	// for one of its addresses, or for this AddressPool, get one.
	// +optional
	// +kubebuilder:default=true
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// Priority: a LoadBalancer gets its address from the AddressPool with the highest priority. Of equal ones the oldest comes
	// first.
	// +optional
	Priority int32 `json:"priority,omitempty"`

	// Draining: LoadBalancers get no new address of this AddressPool. They keep the addresses that they have.
	// +optional
	Draining bool `json:"draining,omitempty"`

	// ReserveRequestedFor is for how long an address in requestedAddresses of a deleted LoadBalancer stays reserved for the tenant, so
	// that a Service that is made again gets the address again. The default is 5m. 0s reserves none.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('168h')",message="spec.reserveRequestedFor: 0s to 168h"
	ReserveRequestedFor *metav1.Duration `json:"reserveRequestedFor,omitempty"`

	// GatewaySelector selects by the labels of Gateway objects which gateways announce the addresses of this AddressPool. Empty means all.
	// It also counts for addresses that LoadBalancers have and that are not in this AddressPool any more.
	// +optional
	GatewaySelector *metav1.LabelSelector `json:"gatewaySelector,omitempty"`

	// AvoidNetworkAddresses excludes the first and the last address of each IPv4 CIDR (network and broadcast
	// address) and the first address of each IPv6 CIDR (subnet-router anycast, RFC 4291). Ranges and single addresses
	// are used as they are.
	// +optional
	// +kubebuilder:default=true
	AvoidNetworkAddresses *bool `json:"avoidNetworkAddresses,omitempty"`
}

// AddressPoolStatus is what the controllers report.
type AddressPoolStatus struct {
	// +optional
	IPv4 *AddressCount `json:"ipv4,omitempty"`
	// +optional
	IPv6 *AddressCount `json:"ipv6,omitempty"`
	// Addresses are the ranges (first-last) that count as external. They follow spec.addresses once those cover no node of a tenant, no
	// gateway, no node of the management cluster and no router. Nodes with such an address are no targets.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Addresses []string `json:"addresses,omitempty"`
	// Reserved are up to 1000 addresses that stay reserved for the tenants of deleted LoadBalancers.
	// +optional
	// +listType=map
	// +listMapKey=address
	// +kubebuilder:validation:MaxItems=1000
	Reserved []ReservedAddress `json:"reserved,omitempty"`
	// Conditions: Ready is False if the AddressPool overlaps another one, or covers addresses of hosts or nodes. Then LoadBalancers get no address of it.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ReservedAddress is an address that is reserved for a tenant.
type ReservedAddress struct {
	Address string `json:"address"`
	// Tenant is the tenant that had the address.
	Tenant string      `json:"tenant"`
	Until  metav1.Time `json:"until"`
}

// DefaultReservation is the default of spec.reserveRequestedFor.
const DefaultReservation = 5 * time.Minute

// MaxReserved is the greatest number of entries in status.reserved.
const MaxReserved = 1000

// AddressCount counts the addresses of one family.
type AddressCount struct {
	// Used is the number of addresses that LoadBalancers have.
	Used int64 `json:"used"`
	// Free is the number of free addresses as decimal text: an IPv6 range may have more than fit into an integer.
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
