package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every object in this package.
var GroupVersion = schema.GroupVersion{Group: "kubelb.k8c.io", Version: "v1alpha1"}

// AddToScheme registers this package's types with a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&LoadBalancer{}, &LoadBalancerList{},
		&Addresses{}, &AddressesList{},
		&Tenant{}, &TenantList{},
		&AddressPool{}, &AddressPoolList{},
		&Gateway{}, &GatewayList{},
		&BGPPeer{}, &BGPPeerList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
