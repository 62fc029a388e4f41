package controller

import (
	"context"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// confinement looks whether a policy holds the manager's account to its own namespaces, since RBAC alone cannot.
type confinement struct {
	client client.Client
	log    logr.Logger
}

// unconfined is a namespace that the manager has no business to make. It is never made.
const unconfined = "not-of-kubelb"

// NeedLeaderElection implements manager.LeaderElectionRunnable: a replica that stands by has the same account.
func (*confinement) NeedLeaderElection() bool { return false }

// Start asks whether the API server would let the manager make a namespace that is no tenant's, and logs an error if it would.
func (c *confinement) Start(ctx context.Context) error {
	err := c.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: unconfined}}, client.DryRunAll)
	switch {
	case apierrors.IsForbidden(err) || ctx.Err() != nil:
	case err == nil || apierrors.IsAlreadyExists(err):
		c.log.Error(nil, "no ValidatingAdmissionPolicy holds this service account: whoever takes over this pod has the whole cluster. Install the policies of the chart kubelb-manager (policies.install=true), "+
			"and see that the API server serves admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy (Kubernetes 1.30 or later)")
	default:
		c.log.Info("it is not known whether a policy holds this service account", "error", err)
	}
	return nil
}
