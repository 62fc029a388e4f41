// Package report builds the status of the Gateway object: conditions, failures, counters and tries. It also has the gateway's metrics.
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

// Report is a status for the writer.
type Report struct {
	v1alpha1.GatewayStatus
	// Served: the dataplane of this process has held everything once. Before that the process does not know all records that the dataplane refuses.
	Served bool
}

// State is the input of a report.
type State struct {
	Driver *driver.Driver
	// Served is that of Report. AllAnnounced: every address is announced that the dataplane holds and that is this gateway's.
	Served, AllAnnounced bool
	// Answered is the number of addresses that the gateway answers for. View is the view by which it elects, empty if gateways do not elect.
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
	// Conditions are added to the conditions that follow from the other fields.
	Conditions []metav1.Condition
	// Conflicts are addresses that another host uses, too. Refusals are heartbeats that were refused.
	Conflicts []announce.Conflict
	Refusals  []heartbeat.Refusal
}

// formerBackendRecord is the beginning of the record of a former backend that could not be purged. The next process reads it.
const formerBackendRecord = "backend "

// New builds the report of a state.
func New(s State, now time.Time) Report {
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
	r.Failures, r.Unlisted = ListFailures(s.Driver.Failures())
	unpurged := s.Driver.Unpurged()
	for _, name := range slices.Sorted(maps.Keys(unpurged)) {
		r.Failures = append(r.Failures, v1alpha1.GatewayFailure{Record: formerBackendRecord + name, Message: plain.Message(unpurged[name], 1024)})
	}
	// During a call, or without a plugin, the dataplane keeps its state, and the object keeps its versions. As soon as it is known what the dataplane
	// lacks, the version is true for the tenants that are not behind.
	if s.Driver.StateKnown() {
		r.AppliedResourceVersion, r.Behind = appliedVersion(s.Driver)
		if s.AllAnnounced {
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
	if slow, ok := slowCondition(s.Driver.Calling(), now); ok {
		conditions = append(conditions, slow)
	}
	conditions = append(conditions, s.Conditions...)
	if len(conflicts) > 0 {
		conditions = append(conditions, conflictCondition(conflicts))
	}
	if len(s.Refusals) > 0 {
		conditions = append(conditions, refusedCondition(s.Refusals))
	}
	return conditions
}

// ready returns the condition that says whether the dataplane holds the model.
func ready(d *driver.Driver) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "InSync", Message: "the dataplane holds the model"}
	switch failed := len(d.Failures()); {
	case d.Problem() != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "BackendFailed", plain.Message(d.Problem().Error(), 1024)
	case !d.Running() || d.Resyncing():
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "BackendRestarting", "the plugin is being started"
	case failed > 0:
		c.Reason, c.Message = "SomeRecordsFailed", fmt.Sprintf("the dataplane refuses %d records; see status.failures", failed)
	case len(d.Unpurged()) > 0:
		c.Reason, c.Message = "FormerBackendLeft", "a former backend could not be purged; see status.failures"
	}
	return c
}

// maxBehind bounds the namespaces in status.behind.
const maxBehind = 1000

// appliedVersion returns the version up to which the dataplane holds LoadBalancers, and the namespaces that are behind. With too many of these
// namespaces it returns nothing: the former version is still true.
func appliedVersion(d *driver.Driver) (version string, behind []v1alpha1.GatewayBehind) {
	byTenant, known := d.Behind()
	if len(byTenant) > maxBehind || !known {
		return "", nil
	}
	for _, tenant := range slices.Sorted(maps.Keys(byTenant)) {
		behind = append(behind, v1alpha1.GatewayBehind{Namespace: translate.Tenant{Name: tenant}.Namespace(), ResourceVersion: strconv.FormatUint(byTenant[tenant], 10)})
	}
	return strconv.FormatUint(d.Version(), 10), behind
}
