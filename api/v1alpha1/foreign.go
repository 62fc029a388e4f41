package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Route is a kind of KubeLB's layer 7. It exists because KubeLB's CCM does not start without the kind. Nothing uses it, and tenants cannot make one.
// Its status is not kept: KubeLB's layer 7 needs another management cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=kubelb
type Route struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is ignored.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Spec runtime.RawExtension `json:"spec,omitempty"`
}

// SyncSecret is a kind of KubeLB's layer 7. It exists because KubeLB's CCM does not start without the kind. Nothing uses it, and tenants cannot
// make one. KubeLB's other fields and the status are not kept: KubeLB's layer 7 needs another management cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=kubelb
type SyncSecret struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Data is ignored.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Data runtime.RawExtension `json:"data,omitempty"`
}
