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

// statusPause keeps the writer from asking the API server for every change of a burst.
const statusPause = 100 * time.Millisecond

// Lease is a gateway's, on which it says that its object cannot be written.
type Lease interface {
	Reaches() bool
	SetWriteError(why string)
}

// Writer writes the Gateway object.
type Writer struct {
	client client.Client
	name   string
	labels map[string]string
	// lease is nil where there is none.
	lease  Lease
	log    *slog.Logger
	newest chan Report
	// unlabelled: it was logged that the object does not get its labels. It belongs to Run.
	unlabelled bool
}

// NewWriter returns one for the Gateway of that name, which is to have the labels.
func NewWriter(c client.Client, name string, labels map[string]string, lease Lease, log *slog.Logger) *Writer {
	return &Writer{client: c, name: name, labels: labels, lease: lease, log: log, newest: make(chan Report, 1)}
}

// Publish hands the present state to Run, which it does not wait for. Only the newest counts. It is called by one goroutine.
func (w *Writer) Publish(r Report) {
	select {
	case <-w.newest:
	default:
	}
	w.newest <- r
}

// Newest receives what was published last, if nobody else has received it.
func (w *Writer) Newest() <-chan Report { return w.newest }

// Run writes the newest status, again and again, until ctx ends. An API server that is away delays nothing else.
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
		failure.note(err, time.Now())
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
		case <-time.After(statusPause):
		}
	}
}

// writeFailure says on the gateway's Lease that its object is out of date, where that cannot be written although the API is reached.
type writeFailure struct {
	lease Lease // nil where there is none
	since time.Time
}

// unwrittenAfter is for how long it has to be tried in vain.
const unwrittenAfter = 10 * time.Second

// note takes note of what has become of a try.
func (f *writeFailure) note(err error, now time.Time) {
	switch {
	case f.lease == nil:
	case err == nil:
		f.since = time.Time{}
		f.lease.SetWriteError("")
	case !f.lease.Reaches():
		f.since = time.Time{}
	case f.since.IsZero():
		f.since = now
	case now.Sub(f.since) >= unwrittenAfter:
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
	if err := w.label(ctx, object); err != nil {
		return err
	}
	before := object.Status.DeepCopy()
	// What was said of a role that the gateway has no more is not said any more.
	conditions := slices.DeleteFunc(slices.Clone(object.Status.Conditions), func(c metav1.Condition) bool { return meta.FindStatusCondition(s.Conditions, c.Type) == nil })
	for _, c := range s.Conditions {
		plain.SetCondition(&conditions, c)
	}
	s.carryOver(*before)
	object.Status, object.Status.Conditions = s.GatewayStatus, conditions
	if equality.Semantic.DeepEqual(before, &object.Status) {
		return nil
	}
	return w.client.Status().Update(ctx, object)
}

// label gives the Gateway object the labels that it is to have. Others, which somebody else has given it, stay. Where a policy leaves changes of
// labels to operators, the gateway goes on with those that its object has: it is chosen by these.
func (w *Writer) label(ctx context.Context, object *v1alpha1.Gateway) error {
	labels := maps.Clone(object.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, w.labels)
	if maps.Equal(labels, object.Labels) {
		return nil
	}
	has := object.Labels
	object.Labels = labels
	err := w.client.Update(ctx, object)
	if !apierrors.IsForbidden(err) {
		w.unlabelled = false
		return err
	}
	object.Labels = has
	if !w.unlabelled {
		w.log.Warn("the Gateway object does not get the labels of --gateway-label: write them with kubectl label", "labels", w.labels, "error", err)
	}
	w.unlabelled = true
	return nil
}
