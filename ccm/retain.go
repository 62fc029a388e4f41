package ccm

import (
	"cmp"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// retain copies settings from the current LoadBalancer in place of settings that are invalid now, so that a typing error costs a Service neither its address nor
// its traffic. It makes the problems of these settings partial. It returns false if a problem remains for which nothing can be served.
func retain(desired, current *v1alpha1.LoadBalancer, problems []translate.Problem) bool {
	for i := range problems {
		p := &problems[i]
		if p.Partial {
			continue
		}
		switch p.Reason {
		case translate.ReasonInvalidAddress:
			desired.Spec.RequestedAddresses = current.Spec.RequestedAddresses
		case translate.ReasonInvalidForwarding:
			desired.Spec.Forwarding = current.Spec.Forwarding
		case translate.ReasonInvalidProxyProtocol:
			// A former release of the CCM wrote the annotation.
			desired.Spec.ProxyProtocol = cmp.Or(current.Spec.ProxyProtocol, current.Annotations[v1alpha1.AnnotationProxyProtocol])
		case translate.ReasonInvalidIdleTimeout:
			desired.Spec.IdleTimeout = current.Spec.IdleTimeout
		case translate.ReasonTooManySourceRanges:
			desired.Spec.LoadBalancerSourceRanges = current.Spec.LoadBalancerSourceRanges
		case translate.ReasonTooManyPorts:
			desired.Spec.Ports = current.Spec.Ports
			for i := range min(len(desired.Spec.Endpoints), len(current.Spec.Endpoints)) {
				desired.Spec.Endpoints[i].Ports = current.Spec.Endpoints[i].Ports
			}
		default:
			return false
		}
		p.Partial = true
		p.Message += "; until then the last valid value stays in effect"
	}
	return true
}

// merge sets labels and spec of the current LoadBalancer to the desired ones, and reports whether that changes it. Labels and annotations of other programs
// stay. The annotation of a former release of the CCM is removed: it would count again once the field is empty.
func merge(current, desired *v1alpha1.LoadBalancer) (changed bool) {
	_, changed = current.Annotations[v1alpha1.AnnotationProxyProtocol]
	delete(current.Annotations, v1alpha1.AnnotationProxyProtocol)
	for key, value := range desired.Labels {
		changed = changed || current.Labels[key] != value
		metav1.SetMetaDataLabel(&current.ObjectMeta, key, value)
	}
	changed = changed || !equality.Semantic.DeepEqual(current.Spec, desired.Spec)
	current.Spec = desired.Spec
	return changed
}
