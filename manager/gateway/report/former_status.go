package report

import (
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	for _, s := range before {
		if !slices.ContainsFunc(r.Silent, func(o v1alpha1.GatewaySilence) bool { return o.Family == s.Family }) {
			r.Silent = append(r.Silent, s)
		}
	}
	slices.SortFunc(r.Silent, func(a, b v1alpha1.GatewaySilence) int { return strings.Compare(string(a.Family), string(b.Family)) })
}

// segmentKnownAfter is how long a new process has to serve until it has seen each fault of the segment that there is: a conflict is found within 30 s.
const segmentKnownAfter = 30 * time.Second

// keepSegmentFaults keeps the faults of the segment that the former process saw and this one has not had the time to see.
func (r *Report) keepSegmentFaults(before v1alpha1.GatewayStatus) {
	conflicts := slices.Clone(r.Conflicts)
	for _, c := range before.Conflicts {
		if !slices.ContainsFunc(conflicts, func(o v1alpha1.AddressConflict) bool { return o.Address == c.Address }) {
			conflicts = append(conflicts, c)
		}
	}
	slices.SortFunc(conflicts, func(a, b v1alpha1.AddressConflict) int { return strings.Compare(a.Address, b.Address) })
	kept := slices.Clone(r.Conditions)
	if len(conflicts) > 0 {
		meta.SetStatusCondition(&kept, conflictCondition(conflicts))
	}
	if refused := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionHeartbeatsRefused); refused != nil && meta.FindStatusCondition(kept, refused.Type) == nil {
		kept = append(kept, metav1.Condition{Type: refused.Type, Status: refused.Status, Reason: refused.Reason, Message: refused.Message})
	}
	r.Conflicts, r.Conditions = conflicts, kept
}
