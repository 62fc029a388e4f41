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
	// strangersEvery is how often they are looked for, and strangersAgain how long an event about one is enough: events last for an hour.
	strangersEvery, strangersAgain = 5 * time.Minute, 50 * time.Minute
	// strangersAtOnce bounds the events of one look.
	strangersAtOnce = 50
	// eventMarked is the reason of events about them.
	eventMarked = "MarkedByKubeLB"
)

// strangers looks for objects that KubeLB's CCM has marked, and that this CCM does not serve: nobody removes the finalizer, so that their deletion
// hangs. It changes nothing. Only the elected CCM looks, so that KubeLB's does not work at that time.
type strangers struct {
	reader client.Reader
	mapper meta.RESTMapper
	events events.EventRecorder
	log    logr.Logger
	// told is when there was an event about an object. It belongs to Start.
	told map[types.UID]time.Time
}

// Start looks until ctx ends.
func (s *strangers) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := s.look(ctx, time.Now()); err != nil {
			s.log.V(1).Info("not all could be looked at", "cause", err.Error())
		}
	}, strangersEvery)
	return nil
}

// look tells of all that are there. Kinds that may not be read are passed over.
func (s *strangers) look(ctx context.Context, now time.Time) error {
	var errs []error
	count, left := 0, strangersAtOnce
	tell := func(o client.Object, message string) {
		count++
		if last, known := s.told[o.GetUID()]; left == 0 || known && now.Sub(last) < strangersAgain {
			return
		}
		left--
		s.told[o.GetUID()] = now
		s.events.Eventf(o.(runtime.Object), nil, corev1.EventTypeWarning, eventMarked, "Look", "%s", message)
	}
	for _, kind := range append(foreign.Kinds(), foreign.SyncSecret) {
		found, err := foreign.Find(ctx, s.reader, s.mapper, kind)
		if err != nil && !apierrors.IsForbidden(err) {
			errs = append(errs, err)
		}
		for i := range found {
			tell(&found[i], "it has the finalizer "+foreign.Finalizer+" of KubeLB's own CCM, which this CCM has replaced: nobody removes it, so that a deletion hangs. 'kubelb migrate from-kubelb' releases it")
		}
	}
	errs = append(errs, s.namespaces(ctx, tell))
	for uid, last := range s.told {
		if now.Sub(last) >= strangersAgain {
			delete(s.told, uid)
		}
	}
	if count > 0 {
		s.log.Info("objects have the finalizer of KubeLB's own CCM, and their deletion hangs: 'kubelb migrate from-kubelb' releases them", "objects", count)
	}
	return errors.Join(errs...)
}

// namespaces tells of those that cannot go for such objects, of whatever kind these are.
func (s *strangers) namespaces(ctx context.Context, tell func(client.Object, string)) error {
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
			tell(n, "its deletion waits for objects with the finalizer "+foreign.Finalizer+". If these are not Services or LoadBalancers, it is of KubeLB's own CCM, which this CCM has replaced, and nobody removes it: 'kubelb migrate from-kubelb' releases them")
		}
	}
	return nil
}
