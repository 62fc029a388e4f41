// Package migrate moves a tenant cluster from KubeLB's own CCM to this project's CCM, and back. The two CCMs have different finalizers and kinds. The package
// removes finalizers and conditions that the next CCM does not know. It deletes no object.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/foreign"
	"kubelb.k8c.io/core/translate"
)

// Migration is one run. It writes a line to Out for each object that it releases.
type Migration struct {
	Client client.Client
	// DryRun means that the run writes the lines, but changes nothing.
	DryRun bool
	Out    io.Writer

	released int
}

// Released returns the number of objects that were released, or that would be.
func (m *Migration) Released() int { return m.released }

// print writes the line of an object.
func (m *Migration) print(o client.Object, kind, what, done string) {
	if m.DryRun {
		done = "would be " + done
	}
	fmt.Fprintf(m.Out, "%s %s: %s %s\n", kind, client.ObjectKeyFromObject(o), what, done)
}

// FromKubeLB removes the finalizer of KubeLB's CCM from all objects of the kinds. An object that is being deleted is gone after that. Do not pass the kind
// Service: this project's CCM removes the finalizer from Services itself. FromKubeLB continues after an object or a kind with an error. It returns all errors.
func (m *Migration) FromKubeLB(ctx context.Context, kinds []schema.GroupKind, options ...client.ListOption) error {
	var errs []error
	for _, kind := range kinds {
		found, err := foreign.Find(ctx, m.Client, m.Client.RESTMapper(), kind, options...)
		errs = append(errs, err)
		for i := range found {
			errs = append(errs, m.release(ctx, &found[i]))
		}
	}
	return errors.Join(errs...)
}

func (m *Migration) release(ctx context.Context, o *metav1.PartialObjectMetadata) error {
	what := "removed"
	if o.DeletionTimestamp != nil {
		what = "removed; the object is being deleted, and nothing holds it any more"
	}
	done, err := m.patch(ctx, o, func() bool { return controllerutil.RemoveFinalizer(o, foreign.Finalizer) })
	if err != nil || !done {
		return err
	}
	m.released++
	m.print(o, o.Kind, "finalizer "+foreign.Finalizer, what)
	return nil
}

// attempts is how often a write is tried if it conflicts with writes of others.
const attempts = 5

// patch calls change, and writes the object's metadata unless change returns false. It reports whether the object was written, or would be.
func (m *Migration) patch(ctx context.Context, o client.Object, change func() bool) (bool, error) {
	var err error
	for range attempts {
		before := o.DeepCopyObject().(client.Object)
		if !change() {
			return false, nil
		}
		if m.DryRun {
			return true, nil
		}
		err = m.Client.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if !apierrors.IsConflict(err) {
			break
		}
		if err := m.Client.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
			return false, client.IgnoreNotFound(err)
		}
	}
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", client.ObjectKeyFromObject(o), err)
	}
	return true, nil
}

// ToKubeLB hands the Services of this project's CCM over to KubeLB's CCM. It replaces the finalizer by KubeLB's in one write, so that a Service cannot be deleted
// without its LoadBalancer. It also removes this CCM's condition. If a Service is being deleted, it only removes the finalizer, so that the Service is deleted. notes
// names Services with the finalizer that may belong to another controller. It does not change them.
func (m *Migration) ToKubeLB(ctx context.Context) (notes []string, err error) {
	list := &corev1.ServiceList{}
	var errs []error
	for {
		if err := m.Client.List(ctx, list, client.Limit(500), client.Continue(list.Continue)); err != nil {
			return notes, errors.Join(append(errs, fmt.Errorf("list services: %w", err))...)
		}
		for i := range list.Items {
			s := &list.Items[i]
			switch marked := slices.Contains(s.Finalizers, v1alpha1.ServiceFinalizer); {
			case ownedByCCM(s):
				errs = append(errs, m.handOver(ctx, s))
			case marked:
				notes = append(notes, fmt.Sprintf("Service %s/%s: not changed: it has the finalizer %s, which all load balancer controllers use, but no condition %s", s.Namespace, s.Name, v1alpha1.ServiceFinalizer, v1alpha1.ServiceCondition))
			}
		}
		if list.Continue == "" {
			return notes, errors.Join(errs...)
		}
	}
}

// ownedByCCM reports whether this project's CCM owns the Service: the Service has the CCM's condition, or the CCM's class and the finalizer.
func ownedByCCM(s *corev1.Service) bool {
	if meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ServiceCondition) != nil {
		return true
	}
	return s.Spec.LoadBalancerClass != nil && *s.Spec.LoadBalancerClass == translate.Class && slices.Contains(s.Finalizers, v1alpha1.ServiceFinalizer)
}

func (m *Migration) handOver(ctx context.Context, s *corev1.Service) error {
	deleted := s.DeletionTimestamp != nil
	done, err := m.patch(ctx, s, func() bool {
		if !controllerutil.RemoveFinalizer(s, v1alpha1.ServiceFinalizer) {
			return false
		}
		if !deleted { // an object that is being deleted cannot get a new finalizer
			controllerutil.AddFinalizer(s, foreign.Finalizer)
		}
		return true
	})
	if err != nil {
		return err
	}
	if done {
		m.released++
		what := "replaced by " + foreign.Finalizer
		if deleted {
			what = fmt.Sprintf("removed; the Service is being deleted, and nothing holds it any more. If LoadBalancer %s is still on the management cluster, delete it there", s.UID)
		}
		m.print(s, "Service", "finalizer "+v1alpha1.ServiceFinalizer, what)
	}
	return m.removeCondition(ctx, s)
}

func (m *Migration) removeCondition(ctx context.Context, s *corev1.Service) error {
	var err error
	for range attempts {
		before := s.DeepCopy()
		if !meta.RemoveStatusCondition(&s.Status.Conditions, v1alpha1.ServiceCondition) {
			return nil
		}
		if !m.DryRun {
			err = m.Client.Status().Patch(ctx, s, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		}
		if !apierrors.IsConflict(err) {
			break
		}
		if err := m.Client.Get(ctx, client.ObjectKeyFromObject(s), s); err != nil {
			return client.IgnoreNotFound(err)
		}
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: status: %w", client.ObjectKeyFromObject(s), err)
	}
	m.print(s, "Service", "condition "+v1alpha1.ServiceCondition, "removed")
	return nil
}
