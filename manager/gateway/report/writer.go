package report

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
)

// writePause is the least pause between two writes, so that a burst of changes is one write.
const writePause = 100 * time.Millisecond

// Lease is a gateway's Lease, which also publishes that the Gateway object cannot be written.
type Lease interface {
	ReachesAPI() bool
	SetWriteError(why string)
}

// Writer writes the Gateway object.
type Writer struct {
	client client.Client
	name   string
	labels map[string]string
	// lease may be nil.
	lease  Lease
	log    *slog.Logger
	newest chan Report
	// labelsRefused: it was logged that the labels cannot be set. It belongs to Run.
	labelsRefused bool
	// servedSince is when the first report was written with Served.
	servedSince time.Time
}

// NewWriter returns a writer of the Gateway with this name, which is to have the labels.
func NewWriter(c client.Client, name string, labels map[string]string, lease Lease, log *slog.Logger) *Writer {
	return &Writer{client: c, name: name, labels: labels, lease: lease, log: log, newest: make(chan Report, 1)}
}

// Publish hands the present state to Run, without waiting. Run writes only the newest one. Only one goroutine calls Publish.
func (w *Writer) Publish(r Report) {
	select {
	case <-w.newest:
	default:
	}
	w.newest <- r
}

// Newest receives what was published last.
func (w *Writer) Newest() <-chan Report { return w.newest }

// Run writes the newest status again and again until ctx ends. An unreachable API server delays nothing else.
func (w *Writer) Run(ctx context.Context) error {
	var latest *Report
	retry := time.NewTimer(0)
	defer retry.Stop()
	failure := writeFailure{lease: w.lease}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-w.Newest():
			latest = &s
		case <-retry.C:
		}
		if latest == nil {
			continue
		}
		err := w.Write(ctx, *latest)
		failure.setResult(err, time.Now())
		if err != nil {
			if ctx.Err() == nil && !apierrors.IsConflict(err) {
				w.log.Warn("write Gateway status", "error", err)
			}
			retry.Reset(time.Second)
			continue
		}
		latest = nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(writePause):
		}
	}
}

// writeFailure publishes on the gateway's Lease that the object is out of date, if the object cannot be written although the API is reached.
type writeFailure struct {
	lease Lease // may be nil
	since time.Time
}

// writeFailureAfter is how long writes have to fail.
const writeFailureAfter = 10 * time.Second

// setResult sets the result of a write.
func (f *writeFailure) setResult(err error, now time.Time) {
	switch {
	case f.lease == nil:
	case err == nil:
		f.since = time.Time{}
		f.lease.SetWriteError("")
	case !f.lease.ReachesAPI():
		f.since = time.Time{}
	case f.since.IsZero():
		f.since = now
	case now.Sub(f.since) >= writeFailureAfter:
		f.lease.SetWriteError(err.Error())
	}
}

// Write writes one status.
func (w *Writer) Write(ctx context.Context, s Report) error {
	object := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: w.name, Labels: w.labels}}
	err := w.client.Get(ctx, client.ObjectKeyFromObject(object), object)
	if apierrors.IsNotFound(err) {
		err = w.client.Create(ctx, object)
	}
	if err != nil {
		return err
	}
	if err := w.setLabels(ctx, object); err != nil {
		return err
	}
	before := object.Status.DeepCopy()
	s.carryOver(*before)
	if !w.knowsSegment(s, time.Now()) {
		s.keepSegmentFaults(*before)
	}
	// Conditions that the report does not have are removed.
	conditions := slices.DeleteFunc(slices.Clone(object.Status.Conditions), func(c metav1.Condition) bool { return meta.FindStatusCondition(s.Conditions, c.Type) == nil })
	for _, c := range s.Conditions {
		plain.SetCondition(&conditions, c)
	}
	object.Status, object.Status.Conditions = s.GatewayStatus, conditions
	if equality.Semantic.DeepEqual(before, &object.Status) {
		return nil
	}
	return w.client.Status().Update(ctx, object)
}

// knowsSegment reports whether this process has served for so long that it has seen the faults of the segment itself.
func (w *Writer) knowsSegment(r Report, now time.Time) bool {
	if r.Served && w.servedSince.IsZero() {
		w.servedSince = now
	}
	return !w.servedSince.IsZero() && now.Sub(w.servedSince) >= segmentKnownAfter
}

// setLabels sets the labels of the Gateway object, and keeps other labels that it has. If a policy leaves labels to operators, the gateway goes on
// with the present labels: AddressPools select it by these.
func (w *Writer) setLabels(ctx context.Context, object *v1alpha1.Gateway) error {
	labels := maps.Clone(object.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, w.labels)
	if maps.Equal(labels, object.Labels) {
		return nil
	}
	former := object.Labels
	object.Labels = labels
	err := w.client.Update(ctx, object)
	if !apierrors.IsForbidden(err) {
		w.labelsRefused = false
		return err
	}
	object.Labels = former
	if !w.labelsRefused {
		w.log.Warn("this gateway may not set the labels of --gateway-label on its Gateway object: set them with kubectl label", "labels", w.labels, "error", err)
	}
	w.labelsRefused = true
	return nil
}
