package ccm

import (
	"cmp"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// retain has a LoadBalancer that is there keep settings that cannot be read any more: a slip in one costs a Service neither its address nor
// its traffic. The problems are partial then. It tells whether no other one is left.
func retain(wished, current *v1alpha1.LoadBalancer, problems []translate.Problem) bool {
	for i := range problems {
		p := &problems[i]
		if p.Partial {
			continue
		}
		switch p.Reason {
		case translate.ReasonInvalidAddress:
			wished.Spec.RequestedAddresses = current.Spec.RequestedAddresses
		case translate.ReasonInvalidForwarding:
			wished.Spec.Forwarding = current.Spec.Forwarding
		case translate.ReasonInvalidProxyProtocol:
			// A former release of the CCM wrote the annotation.
			wished.Spec.ProxyProtocol = cmp.Or(current.Spec.ProxyProtocol, current.Annotations[v1alpha1.AnnotationProxyProtocol])
		case translate.ReasonInvalidIdleTimeout:
			wished.Spec.IdleTimeout = current.Spec.IdleTimeout
		case translate.ReasonTooManySourceRanges:
			wished.Spec.LoadBalancerSourceRanges = current.Spec.LoadBalancerSourceRanges
		case translate.ReasonTooManyPorts:
			wished.Spec.Ports = current.Spec.Ports
			for i := range min(len(wished.Spec.Endpoints), len(current.Spec.Endpoints)) {
				wished.Spec.Endpoints[i].Ports = current.Spec.Endpoints[i].Ports
			}
		default:
			return false
		}
		p.Partial = true
		p.Message += "; until then that stays as it was"
	}
	return true
}

// merge brings a LoadBalancer that is there to what is wished, and tells whether that changes it. Labels and annotations of others stay. The
// annotation that a former release of the CCM wrote goes: it would count again once the field is empty.
func merge(current, wished *v1alpha1.LoadBalancer) (changed bool) {
	_, changed = current.Annotations[v1alpha1.AnnotationProxyProtocol]
	delete(current.Annotations, v1alpha1.AnnotationProxyProtocol)
	for key, value := range wished.Labels {
		changed = changed || current.Labels[key] != value
		metav1.SetMetaDataLabel(&current.ObjectMeta, key, value)
	}
	changed = changed || !equality.Semantic.DeepEqual(current.Spec, wished.Spec)
	current.Spec = wished.Spec
	return changed
}
