package driver

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// Failure is a record that the dataplane did not take.
type Failure struct {
	// Owner is the LoadBalancer of a frontend, Tenant the tenant of a pool. The other one is empty.
	Owner, Tenant string
	Message       string
	// of names the record.
	of dataplane.RecordError
}

// note remembers which records failed, and forgets those that the dataplane took. What fails again and again is logged once.
func (d *Driver) note(sent model.Delta, failed []dataplane.RecordError) {
	before := map[string]Failure{}
	for _, e := range failed {
		before[e.Record()] = d.failures[e.Record()]
	}
	for _, e := range recordsOf(sent) {
		delete(d.failures, e.Record())
	}
	for _, e := range failed {
		f := Failure{Message: e.Message, of: dataplane.RecordError{Pool: e.Pool, Frontend: e.Frontend}}
		if owner, ok := d.options.Model.Owner(e.Frontend); ok && e.Pool == "" {
			f.Owner = owner.String()
		}
		if e.Pool != "" {
			f.Tenant = e.Pool.Tenant()
		}
		d.failures[e.Record()] = f
		if before[e.Record()] != f {
			d.log.Warn("record refused", "record", e.Record(), "reason", e.Message)
		}
	}
	if len(d.failures) > 0 && d.retryAt.IsZero() {
		d.retryAt = time.Now().Add(retryFailed)
	}
	d.confirm(sent)
}

// stillFailing are those of the failures that are among the errors.
func stillFailing(failures map[string]Failure, errs []dataplane.RecordError) map[string]Failure {
	still := map[string]Failure{}
	for _, e := range errs {
		if f, did := failures[e.Record()]; did {
			still[e.Record()] = f
		}
	}
	return still
}
