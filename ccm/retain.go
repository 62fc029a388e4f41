package ccm

import (
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
			if was := current.Annotations[v1alpha1.AnnotationProxyProtocol]; was != "" {
				metav1.SetMetaDataAnnotation(&desired.ObjectMeta, v1alpha1.AnnotationProxyProtocol, was)
			}
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
		p.Message += "; until then that stays as it was"
	}
	return true
}
