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

// policyChecker checks whether the admission policies are in force. They restrict the accounts of the manager, of gateways and of tenants where RBAC cannot.
type policyChecker struct {
	client  client.Client
	reader  client.Reader
	log     logr.Logger
	metrics *metrics
	// logged is the problem of each policy that was logged last.
	logged map[string]string
}

// forbiddenNamespace is a namespace that the policies do not let the manager make. It is never made.
const forbiddenNamespace = "not-of-kubelb"

// policyInterval is the interval of the checks: a policy may be deleted at any time.
const policyInterval = 10 * time.Minute

// NeedLeaderElection implements manager.LeaderElectionRunnable. Each replica checks, since all have the same account.
func (*policyChecker) NeedLeaderElection() bool { return false }

// Start checks periodically until ctx ends.
func (c *policyChecker) Start(ctx context.Context) error {
	names, err := policies.Names()
	if err != nil {
		return err
	}
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		c.dryRun(ctx)
		for _, name := range names {
			c.check(ctx, name)
		}
	}, policyInterval)
	return nil
}

// dryRun logs an error if the API server would let the manager make a namespace that is not a tenant's.
func (c *policyChecker) dryRun(ctx context.Context) {
	err := c.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: forbiddenNamespace}}, client.DryRunAll)
	switch {
	case apierrors.IsForbidden(err) || ctx.Err() != nil:
	case err == nil || apierrors.IsAlreadyExists(err):
		c.log.Error(nil, "no ValidatingAdmissionPolicy restricts this service account: an attacker in this pod has the whole cluster. "+installHint)
	default:
		c.log.Info("cannot check whether a ValidatingAdmissionPolicy restricts this service account", "error", err)
	}
}

const installHint = "Install the policies of the chart kubelb-manager (policies.install=true), and see that the API server serves " +
	"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy (Kubernetes 1.31 or later)"

// check sets the metric of the policy, and logs a change.
func (c *policyChecker) check(ctx context.Context, name string) {
	problem, err := c.problem(ctx, name)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.metrics.policies.DeleteLabelValues(name)
		problem = fmt.Sprintf("cannot check whether it is in force: %v", err)
	} else {
		inForce := 0.0
		if problem == "" {
			inForce = 1
		}
		c.metrics.policies.WithLabelValues(name).Set(inForce)
	}
	if problem == c.logged[name] {
		return
	}
	c.logged[name] = problem
	if problem == "" {
		c.log.Info("a ValidatingAdmissionPolicy is in force again", "policy", name)
		return
	}
	c.log.Error(nil, "a ValidatingAdmissionPolicy is not in force. "+installHint, "policy", name, "reason", problem)
}

// problem returns why the policy is not in force. It is empty if the policy is in force.
func (c *policyChecker) problem(ctx context.Context, name string) (string, error) {
	var policy admissionv1.ValidatingAdmissionPolicy
	if err := c.reader.Get(ctx, client.ObjectKey{Name: name}, &policy); err != nil {
		return missing("the policy", err)
	}
	if policy.Spec.FailurePolicy != nil && *policy.Spec.FailurePolicy == admissionv1.Ignore {
		return "spec.failurePolicy is Ignore: an object that the policy cannot evaluate is accepted", nil
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
