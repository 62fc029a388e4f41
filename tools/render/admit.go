package render

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	ccmconvert "kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/tools/manifest"
)

const (
	// ReasonInvalid is the reason for an object that an API server refuses.
	ReasonInvalid = "Invalid"
	// reasonHubRefused is the reason for a Service whose LoadBalancer the hub refuses. The CCM uses the same reason.
	reasonHubRefused = "HubRefused"
)

// admit returns the objects that API servers accept. Errors of the other objects become problems.
func (r *Result) admit(ctx context.Context) ([]manifest.Object, error) {
	var accepted []manifest.Object
	for _, o := range r.objects {
		if o.Typed == nil {
			continue
		}
		errs, err := r.validator.Validate(ctx, o.Kind, o.Typed, o.Content)
		if err != nil {
			return nil, err
		}
		for _, e := range errs {
			r.Problems = append(r.Problems, Problem{File: o.File, Line: o.Line(fieldPath(e)), Object: o.Kind + " " + nameOf(o), Reason: ReasonInvalid, Field: fieldPath(e), Message: e.Error()})
		}
		if len(errs) == 0 {
			accepted = append(accepted, o)
		}
	}
	return accepted, nil
}

// fieldPath returns the error's field as users write it. The API server misspells two paths.
func fieldPath(e *field.Error) string {
	return strings.NewReplacer("spec.LoadBalancerSourceRanges", "spec.loadBalancerSourceRanges", "metadata.taints", "spec.taints").Replace(e.Field)
}

func nameOf(o manifest.Object) string {
	return strings.TrimPrefix(model.ObjectName{Namespace: o.Typed.GetNamespace(), Name: o.Typed.GetName()}.String(), "/")
}

// refuseOnHub removes the Services whose LoadBalancer the hub's API server refuses, and reports whether there are any.
func (r *Result) refuseOnHub(ctx context.Context) (bool, error) {
	refused := false
	for _, lb := range r.Output.LoadBalancers {
		if r.isGiven(lb.ObjectName) {
			continue
		}
		errs, err := r.validator.Validate(ctx, "LoadBalancer", ccmconvert.LoadBalancer(lb), nil)
		if err != nil {
			return false, err
		}
		if len(errs) == 0 {
			continue
		}
		refused = true
		r.services = slices.DeleteFunc(r.services, func(s *corev1.Service) bool { return s.Namespace == lb.OriginNamespace && s.Name == lb.OriginName })
		r.Problems = append(r.Problems, r.refusalOf(model.ObjectName{Namespace: lb.OriginNamespace, Name: lb.OriginName}, errs))
	}
	return refused, nil
}

// refusalOf returns the problem of a Service whose LoadBalancer the hub refuses.
func (r *Result) refusalOf(service model.ObjectName, errs field.ErrorList) Problem {
	p := Problem{Object: "Service " + service.String(), Reason: reasonHubRefused, Field: fieldPath(errs[0]),
		Message: "the management cluster does not accept the LoadBalancer: " + errs.ToAggregate().Error()}
	for _, o := range r.objects {
		if s, is := o.Typed.(*corev1.Service); is && s.Namespace == service.Namespace && s.Name == service.Name {
			p.File, p.Line = o.File, o.Line(p.Field)
		}
	}
	return p
}
