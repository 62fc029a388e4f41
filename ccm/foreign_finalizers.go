package ccm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/ccm/foreign"
)

const (
	// foreignSearchEvery is the interval of the search. foreignEventAgain is the time after which an object gets another event: the API server deletes events after an hour.
	foreignSearchEvery, foreignEventAgain = 5 * time.Minute, 50 * time.Minute
	// foreignEventsAtOnce bounds the events of one search.
	foreignEventsAtOnce = 50
	// eventMarked is the reason of these events.
	eventMarked = "MarkedByKubeLB"
)

// foreignFinalizers reports objects of kinds that this CCM does not serve and that have the finalizer of KubeLB's own CCM. Nothing removes that finalizer, so their
// deletion hangs. It changes no object. Only the elected replica searches: KubeLB's CCM, which uses the same Lease, cannot be at work at that time.
type foreignFinalizers struct {
	reader client.Reader
	mapper meta.RESTMapper
	events events.EventRecorder
	log    logr.Logger
	// lastEvents is when each object got its last event. Only Start uses it.
	lastEvents map[types.UID]time.Time
}

// Start searches until ctx ends.
func (s *foreignFinalizers) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := s.search(ctx, time.Now()); err != nil {
			s.log.V(1).Info("cannot read all objects that may have the finalizer of KubeLB's own CCM", "cause", err.Error())
		}
	}, foreignSearchEvery)
	return nil
}

// search searches once, and sends an event of each object with the finalizer. It skips kinds that the CCM may not read.
func (s *foreignFinalizers) search(ctx context.Context, now time.Time) error {
	var errs []error
	count, left := 0, foreignEventsAtOnce
	emit := func(o client.Object, message string) {
		count++
		if last, known := s.lastEvents[o.GetUID()]; left == 0 || known && now.Sub(last) < foreignEventAgain {
			return
		}
		left--
		s.lastEvents[o.GetUID()] = now
		s.events.Eventf(o.(runtime.Object), nil, corev1.EventTypeWarning, eventMarked, "Look", "%s", message)
	}
	for _, kind := range append(foreign.Kinds(), foreign.SyncSecret) {
		found, err := foreign.Find(ctx, s.reader, s.mapper, kind)
		if err != nil && !apierrors.IsForbidden(err) {
			errs = append(errs, err)
		}
		for i := range found {
			emit(&found[i], "this object has the finalizer "+foreign.Finalizer+" of KubeLB's own CCM, which this CCM has replaced. Nothing removes the finalizer, so a deletion of the object hangs. Remove the finalizer with 'kubelb migrate from-kubelb'")
		}
	}
	errs = append(errs, s.namespaces(ctx, emit))
	for uid, last := range s.lastEvents {
		if now.Sub(last) >= foreignEventAgain {
			delete(s.lastEvents, uid)
		}
	}
	if count > 0 {
		s.log.Info("objects have the finalizer of KubeLB's own CCM, and their deletion hangs: remove the finalizer with 'kubelb migrate from-kubelb'", "objects", count)
	}
	return errors.Join(errs...)
}

// namespaces reports namespaces whose deletion waits for objects with the finalizer, of any kind.
func (s *foreignFinalizers) namespaces(ctx context.Context, emit func(client.Object, string)) error {
	var list corev1.NamespaceList
	if err := s.reader.List(ctx, &list); err != nil {
		return client.IgnoreNotFound(err)
	}
	for i := range list.Items {
		n := &list.Items[i]
		hangs := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NamespaceCondition) bool {
			return c.Type == corev1.NamespaceFinalizersRemaining && c.Status == corev1.ConditionTrue && strings.Contains(c.Message, foreign.Finalizer)
		})
		if hangs {
			emit(n, "the deletion of this namespace waits for objects with the finalizer "+foreign.Finalizer+". If they are not Services or LoadBalancers, the finalizer is of KubeLB's own CCM, which this CCM has replaced, and nothing removes it: remove it with 'kubelb migrate from-kubelb'")
		}
	}
	return nil
}
