package report

import (
	"slices"
	"strings"

	"kubelb.k8c.io/api/v1alpha1"
)

// carryOver takes over from the object what the report does not know. While the backend is away the dataplane goes on: what it held, it holds. What it
// refused, it does not hold, and a version without its refusals would say that it does.
func (r *Report) carryOver(before v1alpha1.GatewayStatus) {
	if r.AppliedResourceVersion == "" {
		r.AppliedResourceVersion, r.Behind = before.AppliedResourceVersion, before.Behind
		if !r.Served {
			isLeft := func(f v1alpha1.GatewayFailure) bool { return strings.HasPrefix(f.Record, leftRecord) }
			refused := slices.DeleteFunc(slices.Clone(before.Failures), isLeft)
			left := slices.DeleteFunc(slices.Clone(r.Failures), func(f v1alpha1.GatewayFailure) bool { return !isLeft(f) })
			r.Failures, r.Unlisted = append(refused, left...), before.Unlisted
		}
	}
	if r.AnnouncedResourceVersion == "" {
		r.AnnouncedResourceVersion = before.AnnouncedResourceVersion
		if !r.Served {
			r.keepSilence(before.Silent)
		}
	}
}

// keepSilence keeps what was said of families of which this process says nothing yet.
func (r *Report) keepSilence(before []v1alpha1.GatewaySilence) {
	for _, s := range before {
		if !slices.ContainsFunc(r.Silent, func(o v1alpha1.GatewaySilence) bool { return o.Family == s.Family }) {
			r.Silent = append(r.Silent, s)
		}
	}
	slices.SortFunc(r.Silent, func(a, b v1alpha1.GatewaySilence) int { return strings.Compare(string(a.Family), string(b.Family)) })
}
