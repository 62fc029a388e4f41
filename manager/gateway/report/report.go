// Package report says how a gateway is: the status of its Gateway object, its conditions and failures, counters and metrics.
package report

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/heartbeat"
)

// Report is a status that the writer is to write.
type Report struct {
	v1alpha1.GatewayStatus
	// Served: the dataplane of this process has held everything once, and serves. Before that the process does not know all that the dataplane refuses.
	Served bool
}

// State is what a report is made of.
type State struct {
	Driver *driver.Driver
	// Served is that of Report. Announces: all that the dataplane holds and that is this gateway's is announced.
	Served, Announces bool
	// Answered is for how many addresses the gateway answers. View is what it elects by, if it does.
	Answered int32
	Elects   bool
	View     election.View
	// Tenants, HostAddresses, Silent and Tries are those of the status.
	Tenants       []v1alpha1.GatewayTenantUse
	HostAddresses []string
	Silent        []v1alpha1.GatewaySilence
	Tries         *v1alpha1.GatewayTries
	// Lacking is what the host lacks.
	Lacking []dataplane.Check
	// Conditions are there beside those that follow from the rest.
	Conditions []metav1.Condition
	// Conflicts are addresses that another host says are its own, Refused heartbeats that are not believed.
	Conflicts []announce.Conflict
	Refused   []heartbeat.Refusal
}

// leftRecord is how the record of a former backend begins that could not be purged.
const leftRecord = "backend "

// Of is the report of the state.
func Of(s State, now time.Time) Report {
	backend := s.Driver.Description()
	r := Report{Served: s.Served, GatewayStatus: v1alpha1.GatewayStatus{
		Backend:            v1alpha1.GatewayBackend{Name: backend.Name, Version: backend.Version, Notes: backend.Notes},
		Generation:         s.Driver.Generation().String(),
		Frontends:          int32(s.Driver.HeldCount()),
		AnnouncedAddresses: s.Answered,
		Elects:             s.Elects,
		Candidates:         s.View.Candidates,
		WithoutIPv4:        s.View.WithoutIPv4,
		WithoutIPv6:        s.View.WithoutIPv6,
		Tenants:            s.Tenants,
		HostAddresses:      s.HostAddresses,
		Silent:             s.Silent,
		Tries:              s.Tries,
	}}
	for _, f := range backend.Features {
		r.Backend.Features = append(r.Backend.Features, string(f))
	}
	r.Failures, r.Unlisted = List(s.Driver.Failures())
	unpurged := s.Driver.Unpurged()
	for _, name := range slices.Sorted(maps.Keys(unpurged)) {
		r.Failures = append(r.Failures, v1alpha1.GatewayFailure{Record: leftRecord + name, Message: plain.Message(unpurged[name], 1024)})
	}
	// While it is called, or away, the dataplane holds what it held, which stands in the object. Once it is known what it lacks, that is true of
	// those who lack nothing, however long it takes until it has all.
	if s.Driver.StateKnown() {
		r.AppliedResourceVersion, r.Behind = applied(s.Driver)
		if s.Announces {
			r.AnnouncedResourceVersion = r.AppliedResourceVersion
		}
	}
	for _, c := range s.Conflicts {
		r.Conflicts = append(r.Conflicts, v1alpha1.AddressConflict{Address: c.Address.String(), MAC: c.MAC})
	}
	r.Conditions = s.conditions(r.Conflicts, now)
	return r
}

func (s State) conditions(conflicts []v1alpha1.AddressConflict, now time.Time) []metav1.Condition {
	conditions := append([]metav1.Condition{ready(s.Driver)}, hostConditions(s.Lacking)...)
	if slow, is := slowCondition(s.Driver.Calling(), now); is {
		conditions = append(conditions, slow)
	}
	conditions = append(conditions, s.Conditions...)
	if len(conflicts) > 0 {
		conditions = append(conditions, conflictCondition(conflicts))
	}
	if len(s.Refused) > 0 {
		conditions = append(conditions, refusedCondition(s.Refused))
	}
	return conditions
}

// ready is the condition that says whether the dataplane holds the model.
func ready(d *driver.Driver) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "InSync", Message: "the dataplane holds the model"}
	switch failed := len(d.Failures()); {
	case d.Problem() != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "BackendFailed", plain.Message(d.Problem().Error(), 1024)
	case !d.Running() || d.Resyncing():
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "BackendRestarting", "the backend's process is being started again"
	case failed > 0:
		c.Reason, c.Message = "SomeRecordsFailed", fmt.Sprintf("%d records could not be taken, see failures", failed)
	case len(d.Unpurged()) > 0:
		c.Reason, c.Message = "FormerBackendLeft", "a former backend could not be purged, see failures"
	}
	return c
}

// maxBehind is how many namespaces the Gateway object names as behind.
const maxBehind = 1000

// applied is up to which version the dataplane holds LoadBalancers, and the namespaces that are behind. With more of those than can be named
// nothing is said: what was said before still holds.
func applied(d *driver.Driver) (version string, behind []v1alpha1.GatewayBehind) {
	of, known := d.Behind()
	if len(of) > maxBehind || !known {
		return "", nil
	}
	for _, tenant := range slices.Sorted(maps.Keys(of)) {
		behind = append(behind, v1alpha1.GatewayBehind{Namespace: translate.Tenant{Name: tenant}.Namespace(), ResourceVersion: strconv.FormatUint(of[tenant], 10)})
	}
	return strconv.FormatUint(d.Version(), 10), behind
}
