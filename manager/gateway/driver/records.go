package driver

import (
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// recordsOf returns the names of the records of a delta.
func recordsOf(d model.Delta) (records []dataplane.RecordError) {
	for _, p := range d.UpsertPools {
		records = append(records, dataplane.RecordError{Pool: p.ID})
	}
	for _, f := range d.UpsertFrontends {
		records = append(records, dataplane.RecordError{Frontend: f.FrontendKey})
	}
	for _, key := range d.DeleteFrontends {
		records = append(records, dataplane.RecordError{Frontend: key})
	}
	for _, id := range d.DeletePools {
		records = append(records, dataplane.RecordError{Pool: id})
	}
	return records
}

// without returns the delta without the records of another one.
func without(d, other model.Delta) model.Delta {
	excluded := map[string]bool{}
	for _, e := range recordsOf(other) {
		excluded[e.Record()] = true
	}
	d.UpsertPools = slices.DeleteFunc(slices.Clone(d.UpsertPools), func(p model.Pool) bool { return excluded[dataplane.RecordError{Pool: p.ID}.Record()] })
	d.UpsertFrontends = slices.DeleteFunc(slices.Clone(d.UpsertFrontends), func(f model.Frontend) bool { return excluded[dataplane.RecordError{Frontend: f.FrontendKey}.Record()] })
	return d
}
