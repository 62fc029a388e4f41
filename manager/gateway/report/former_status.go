package report

import (
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
)

// carryOver takes from the object what the report does not know. While the plugin does not run, the dataplane goes on: it holds what it held. It does
// not hold what it refused, so that a version without the refusals would be wrong.
func (r *Report) carryOver(before v1alpha1.GatewayStatus) {
	if r.AppliedResourceVersion == "" {
		r.AppliedResourceVersion, r.Behind = before.AppliedResourceVersion, before.Behind
		if !r.Served {
			isFormerBackend := func(f v1alpha1.GatewayFailure) bool { return strings.HasPrefix(f.Record, formerBackendRecord) }
			refused := slices.DeleteFunc(slices.Clone(before.Failures), isFormerBackend)
			formerBackends := slices.DeleteFunc(slices.Clone(r.Failures), func(f v1alpha1.GatewayFailure) bool { return !isFormerBackend(f) })
			r.Failures, r.Unlisted = append(refused, formerBackends...), before.Unlisted
		}
	}
	if r.AnnouncedResourceVersion == "" {
		r.AnnouncedResourceVersion = before.AnnouncedResourceVersion
		if !r.Served {
			r.keepSilence(before.Silent)
		}
	}
}

// keepSilence keeps the former silence of families of which this process knows nothing yet.
func (r *Report) keepSilence(before []v1alpha1.GatewaySilence) {
	r.Silent = withFormer(r.Silent, before, func(s v1alpha1.GatewaySilence) string { return string(s.Family) })
}

// withFormer returns the entries, and those of before with other keys, sorted by key.
func withFormer[T any](entries, before []T, key func(T) string) []T {
	all := slices.Clone(entries)
	for _, former := range before {
		if !slices.ContainsFunc(all, func(o T) bool { return key(o) == key(former) }) {
			all = append(all, former)
		}
	}
	slices.SortFunc(all, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	return all
}

// segmentKnownAfter is how long a new process has to serve until it has seen each fault of the segment that there is: a conflict is found within 30 s.
const segmentKnownAfter = 30 * time.Second

// keepSegmentFaults keeps the faults of the segment that the former process saw and this one has not had the time to see.
func (r *Report) keepSegmentFaults(before v1alpha1.GatewayStatus) {
	r.Conflicts = withFormer(r.Conflicts, before.Conflicts, func(c v1alpha1.AddressConflict) string { return c.Address })
	r.Conditions = slices.Clone(r.Conditions)
	if len(r.Conflicts) > 0 {
		plain.SetCondition(&r.Conditions, conflictCondition(r.Conflicts))
	}
	if refused := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionHeartbeatsRefused); refused != nil && meta.FindStatusCondition(r.Conditions, refused.Type) == nil {
		r.Conditions = append(r.Conditions, *refused)
	}
}
