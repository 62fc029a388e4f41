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
	// renewEvery is how often the Lease is renewed, and a half of that later at most.
	renewEvery  = 25 * time.Second
	renewJitter = 0.5
	// renewSeldom is how often it is tried, after ever longer pauses, at a management cluster that has no such Lease.
	renewSeldom = 10 * time.Minute
	// leaseSeconds is for how long a renewal lasts.
	leaseSeconds = 120
	// renewTimeout bounds a request.
	renewTimeout = 10 * time.Second
)

// lease is what the CCM renews in its tenant's namespace on the management cluster, so that there it is known to be there. The replica that is elected
// renews it. Nothing else depends on it.
type lease struct {
	leases   coordination.LeaseInterface
	identity string
	log      logr.Logger

	// What follows belongs to Start.

	// renewed: it was once, so that the management cluster has it.
	renewed bool
	pause   time.Duration
	// told is what was logged last; empty while it is renewed.
	told string
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

// Start renews it again and again until ctx ends.
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

// renew does it once, and sets after which pause to do it again.
func (l *lease) renew(ctx context.Context, now time.Time) {
	err := l.write(ctx, now)
	absent := apierrors.IsNotFound(err) || apierrors.IsForbidden(err)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if l.told != "" {
			l.log.Info("the Lease on the management cluster is renewed again")
		}
		l.renewed, l.told, l.pause = true, "", renewEvery
	case absent && !l.renewed:
		// A management cluster of a former release has none.
		l.pause = min(max(2*l.pause, renewEvery), renewSeldom)
	default:
		l.pause = renewEvery
		if kind := kindOf(err); kind != l.told {
			l.log.Error(err, "the Lease on the management cluster cannot be renewed; it is tried again and again, and nothing else depends on it")
			l.told = kind
		}
	}
}

// kindOf tells apart what is logged: texts differ each time, as by the port of a connection.
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
