package ccm

import (
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
			if was := current.Annotations[v1alpha1.AnnotationProxyProtocol]; was != "" {
				metav1.SetMetaDataAnnotation(&wished.ObjectMeta, v1alpha1.AnnotationProxyProtocol, was)
			}
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
