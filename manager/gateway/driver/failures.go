package driver

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// Failure is a record that the dataplane did not take.
type Failure struct {
	// Owner is the LoadBalancer of a frontend, Tenant the tenant of a pool. The other one of the two is empty.
	Owner, Tenant string
	Message       string
	// record is the name of the record.
	record dataplane.RecordError
}

// updateFailures adds the records that failed, and removes those that the dataplane took. A record that fails again for the same reason is logged
// once.
func (d *Driver) updateFailures(sent model.Delta, failed []dataplane.RecordError) {
	before := map[string]Failure{}
	for _, e := range failed {
		before[e.Record()] = d.failures[e.Record()]
	}
	for _, e := range recordsOf(sent) {
		delete(d.failures, e.Record())
	}
	for _, e := range failed {
		f := Failure{Message: e.Message, record: dataplane.RecordError{Pool: e.Pool, Frontend: e.Frontend}}
		if owner, ok := d.options.Model.Owner(e.Frontend); ok && e.Pool == "" {
			f.Owner = owner.String()
		}
		if e.Pool != "" {
			f.Tenant = e.Pool.Tenant()
		}
		d.failures[e.Record()] = f
		if before[e.Record()] != f {
			d.log.Warn("the dataplane refuses a record", "record", e.Record(), "reason", e.Message)
		}
	}
	if len(d.failures) > 0 && d.retryAt.IsZero() {
		d.retryAt = time.Now().Add(retryFailed)
	}
	d.confirm(sent)
}

// stillFailing returns the failures of the given records.
func stillFailing(failures map[string]Failure, errs []dataplane.RecordError) map[string]Failure {
	remaining := map[string]Failure{}
	for _, e := range errs {
		if f, did := failures[e.Record()]; did {
			remaining[e.Record()] = f
		}
	}
	return remaining
}
