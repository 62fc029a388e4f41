package ccm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"kubelb.k8c.io/api/v1alpha1"
)

const (
	// renewEvery is the shortest interval between two renewals. renewJitter lengthens it at random, by a half at most.
	renewEvery  = 25 * time.Second
	renewJitter = 0.5
	// renewSeldom is the longest interval between attempts on a hub that has no such Lease. The intervals double until then.
	renewSeldom = 10 * time.Minute
	// leaseSeconds is how long a renewal is valid.
	leaseSeconds = 120
	// renewTimeout bounds each request.
	renewTimeout = 10 * time.Second
)

// lease renews a Lease in the tenant's namespace on the hub. By it the hub's controllers see that the CCM runs. The elected replica renews it. Nothing else
// depends on it.
type lease struct {
	leases   coordination.LeaseInterface
	identity string
	log      logr.Logger

	// Only Start uses the fields below.

	// renewed: the Lease was renewed once, so the hub has it.
	renewed bool
	// pause is the time until the next renewal, without jitter.
	pause time.Duration
	// loggedKind is the kind of the error that was logged last. It is empty while renewals succeed.
	loggedKind string
}

func newLease(hub *rest.Config, namespace string, log logr.Logger) (*lease, error) {
	client, err := coordination.NewForConfig(hub)
	if err != nil {
		return nil, fmt.Errorf("management cluster: %w", err)
	}
	host, err := os.Hostname() // in a pod its name
	if err != nil {
		return nil, err
	}
	return &lease{leases: client.Leases(namespace), identity: host, log: log}, nil
}

// Start renews the Lease until ctx ends.
func (l *lease) Start(ctx context.Context) error {
	for {
		l.renew(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.Jitter(l.pause, renewJitter)):
		}
	}
}

// renew renews the Lease once, and sets the pause until the next renewal.
func (l *lease) renew(ctx context.Context, now time.Time) {
	err := l.write(ctx, now)
	absent := apierrors.IsNotFound(err) || apierrors.IsForbidden(err)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if l.loggedKind != "" {
			l.log.Info("renewed the Lease on the management cluster again")
		}
		l.renewed, l.loggedKind, l.pause = true, "", renewEvery
	case absent && !l.renewed:
		// A hub of a former release has no such Lease.
		l.pause = min(max(2*l.pause, renewEvery), renewSeldom)
	default:
		l.pause = renewEvery
		if kind := kindOf(err); kind != l.loggedKind {
			l.log.Error(err, "cannot renew the Lease on the management cluster; trying again. Nothing else depends on this Lease")
			l.loggedKind = kind
		}
	}
}

// kindOf returns the kind of an error: each kind is logged once. Texts of errors would not do, since they differ each time, for example by the port of a connection.
func kindOf(err error) string {
	if reason := apierrors.ReasonForError(err); reason != metav1.StatusReasonUnknown {
		return string(reason)
	}
	return "no answer"
}

func (l *lease) write(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	seconds := int32(leaseSeconds)
	patch, err := json.Marshal(map[string]any{"spec": coordinationv1.LeaseSpec{HolderIdentity: &l.identity, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: now}}})
	if err != nil {
		return err
	}
	_, err = l.leases.Patch(ctx, v1alpha1.CCMName, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
