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
	// ReasonInvalid is that of an object which an API server refuses.
	ReasonInvalid = "Invalid"
	// reasonHubRefused is that of a Service whose LoadBalancer the hub refuses, as the CCM puts it.
	reasonHubRefused = "HubRefused"
)

// admit returns the objects that API servers take. What they refuse of the others becomes problems.
func (r *Result) admit(ctx context.Context) ([]manifest.Object, error) {
	var taken []manifest.Object
	for _, o := range r.objects {
		if o.Typed == nil {
			continue
		}
		errs, err := r.judge.Validate(ctx, o.Kind, o.Typed, o.Content)
		if err != nil {
			return nil, err
		}
		for _, e := range errs {
			r.Problems = append(r.Problems, Problem{File: o.File, Line: o.Line(written(e)), Object: o.Kind + " " + nameOf(o), Reason: ReasonInvalid, Field: written(e), Message: e.Error()})
		}
		if len(errs) == 0 {
			taken = append(taken, o)
		}
	}
	return taken, nil
}

// written is the error's field as people write it: two paths of the API server are other ones.
func written(e *field.Error) string {
	return strings.NewReplacer("spec.LoadBalancerSourceRanges", "spec.loadBalancerSourceRanges", "metadata.taints", "spec.taints").Replace(e.Field)
}

func nameOf(o manifest.Object) string {
	return strings.TrimPrefix(model.ObjectName{Namespace: o.Typed.GetNamespace(), Name: o.Typed.GetName()}.String(), "/")
}

// refuseOnHub takes out the Services whose LoadBalancer the hub's API server refuses, and reports whether there are some.
func (r *Result) refuseOnHub(ctx context.Context) (bool, error) {
	refused := false
	for _, lb := range r.Output.LoadBalancers {
		if r.isGiven(lb.ObjectName) {
			continue
		}
		errs, err := r.judge.Validate(ctx, "LoadBalancer", ccmconvert.LoadBalancer(lb), nil)
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

// refusalOf says of a Service what the hub refuses.
func (r *Result) refusalOf(service model.ObjectName, errs field.ErrorList) Problem {
	p := Problem{Object: "Service " + service.String(), Reason: reasonHubRefused, Field: written(errs[0]),
		Message: "the management cluster does not accept the LoadBalancer: " + errs.ToAggregate().Error()}
	for _, o := range r.objects {
		if s, is := o.Typed.(*corev1.Service); is && s.Namespace == service.Namespace && s.Name == service.Name {
			p.File, p.Line = o.File, o.Line(p.Field)
		}
	}
	return p
}
