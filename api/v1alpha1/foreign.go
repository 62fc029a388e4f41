package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Route is for layer 7 in KubeLB, whose CCM does not start where the kind is missing. Here it means nothing, and tenants cannot make one.
// Its status is not kept: KubeLB's layer 7 needs another management cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=kubelb
type Route struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is not looked at.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Spec runtime.RawExtension `json:"spec,omitempty"`
}

// SyncSecret is for layer 7 in KubeLB, whose CCM does not start where the kind is missing. Here it means nothing, and tenants cannot
// make one. KubeLB's other fields and its status are not kept: KubeLB's layer 7 needs another management cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=kubelb
type SyncSecret struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Data is not looked at.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Data runtime.RawExtension `json:"data,omitempty"`
}
