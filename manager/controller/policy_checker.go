package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/policies"
)

// confinement looks whether the policies are in force that hold the accounts of the manager, of gateways and of tenants to what is theirs, since RBAC
// alone cannot.
type confinement struct {
	client  client.Client
	reader  client.Reader
	log     logr.Logger
	metrics *metrics
	// said is what was logged of each policy.
	said map[string]string
}

// unconfined is a namespace that the manager has no business to make. It is never made.
const unconfined = "not-of-kubelb"

// policyInterval is how often it looks: a policy may be deleted at any time.
const policyInterval = 10 * time.Minute

// NeedLeaderElection implements manager.LeaderElectionRunnable: a replica that stands by has the same account.
func (*confinement) NeedLeaderElection() bool { return false }

// Start looks now and again until the context ends.
func (c *confinement) Start(ctx context.Context) error {
	names, err := policies.Names()
	if err != nil {
		return err
	}
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		c.dryRun(ctx)
		for _, name := range names {
			c.look(ctx, name)
		}
	}, policyInterval)
	return nil
}

// dryRun asks whether the API server would let the manager make a namespace that is no tenant's, and logs an error if it would.
func (c *confinement) dryRun(ctx context.Context) {
	err := c.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: unconfined}}, client.DryRunAll)
	switch {
	case apierrors.IsForbidden(err) || ctx.Err() != nil:
	case err == nil || apierrors.IsAlreadyExists(err):
		c.log.Error(nil, "no ValidatingAdmissionPolicy holds this service account: whoever takes over this pod has the whole cluster. "+mendPolicies)
	default:
		c.log.Info("it is not known whether a policy holds this service account", "error", err)
	}
}

const mendPolicies = "Install the policies of the chart kubelb-manager (policies.install=true), and see that the API server serves " +
	"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy (Kubernetes 1.31 or later)"

// look says in a metric, and in the log if it changes, whether the policy is in force.
func (c *confinement) look(ctx context.Context, name string) {
	lacks, err := c.lacks(ctx, name)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.metrics.policies.DeleteLabelValues(name)
		lacks = fmt.Sprintf("it is not known whether it is in force: %v", err)
	} else {
		inForce := 0.0
		if lacks == "" {
			inForce = 1
		}
		c.metrics.policies.WithLabelValues(name).Set(inForce)
	}
	if lacks == c.said[name] {
		return
	}
	c.said[name] = lacks
	if lacks == "" {
		c.log.Info("a ValidatingAdmissionPolicy is in force again", "policy", name)
		return
	}
	c.log.Error(nil, "a ValidatingAdmissionPolicy does not hold accounts to what is theirs. "+mendPolicies, "policy", name, "reason", lacks)
}

// lacks says why the policy is not in force; it is empty if it is.
func (c *confinement) lacks(ctx context.Context, name string) (string, error) {
	var policy admissionv1.ValidatingAdmissionPolicy
	if err := c.reader.Get(ctx, client.ObjectKey{Name: name}, &policy); err != nil {
		return missing("the policy", err)
	}
	if policy.Spec.FailurePolicy != nil && *policy.Spec.FailurePolicy == admissionv1.Ignore {
		return "spec.failurePolicy is Ignore: what it cannot judge it lets through", nil
	}
	var binding admissionv1.ValidatingAdmissionPolicyBinding
	if err := c.reader.Get(ctx, client.ObjectKey{Name: name}, &binding); err != nil {
		return missing("its ValidatingAdmissionPolicyBinding", err)
	}
	switch {
	case binding.Spec.PolicyName != name:
		return "its ValidatingAdmissionPolicyBinding names another policy", nil
	case !slices.Contains(binding.Spec.ValidationActions, admissionv1.Deny):
		return "its ValidatingAdmissionPolicyBinding does not have the action Deny", nil
	}
	return "", nil
}

func missing(what string, err error) (string, error) {
	if apierrors.IsNotFound(err) {
		return what + " does not exist", nil
	}
	return "", err
}
