package ccm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authorization "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"kubelb.k8c.io/api/v1alpha1"
)

// needed is what the CCM does on the management cluster, in its tenant's namespace.
var needed = map[string][]string{
	"loadbalancers": {"create", "delete", "get", "list", "update", "watch"},
	"addresses":     {"create", "get", "list", "update", "watch"},
}

// excessive are rights that credentials of one tenant never have: whoever takes them from this cluster has other tenants as well.
var excessive = []authorizationv1.ResourceAttributes{
	{Group: v1alpha1.GroupVersion.Group, Resource: "loadbalancers", Verb: "create"},
	{Resource: "secrets", Verb: "get"},
}

// credentialsTimeout bounds the check.
const credentialsTimeout = 10 * time.Second

// credentials asks the management cluster what the CCM may do there.
type credentials struct {
	reviews   authorization.SelfSubjectAccessReviewInterface
	namespace string
}

func newCredentials(hub *rest.Config, namespace string) (*credentials, error) {
	api, err := authorization.NewForConfig(hub)
	if err != nil {
		return nil, fmt.Errorf("management cluster: %w", err)
	}
	return &credentials{reviews: api.SelfSubjectAccessReviews(), namespace: namespace}, nil
}

func (c *credentials) may(ctx context.Context, a authorizationv1.ResourceAttributes) (bool, error) {
	review, err := c.reviews.Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}}, metav1.CreateOptions{})
	if apierrors.IsUnauthorized(err) {
		return false, fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig have ended, or were rotated or revoked: there, '%s' prints a new kubeconfig: %w", kubeconfigCommand(c.namespace), err)
	}
	if err != nil {
		return false, fmt.Errorf("management cluster: %w", err)
	}
	return review.Status.Allowed, nil
}

// refuseExcess is an error that names a right which the credentials should not have. A management cluster that does not answer is none.
func (c *credentials) refuseExcess(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	for _, right := range excessive {
		allowed, err := c.may(ctx, right)
		if err != nil {
			log.FromContext(ctx).Error(err, "it is not known what the credentials may do")
			return nil
		}
		if allowed {
			return fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig may %s %s in every namespace, which a tenant's may not: take those in the Secret %s of namespace %s, or say --allow-broad-credentials",
				right.Verb, right.Resource, v1alpha1.CCMKubeconfigSecret, c.namespace)
		}
	}
	return nil
}

// check is an error when the management cluster does not answer, or the credentials lack a right, or have too many.
func (c *credentials) check(ctx context.Context, broad bool) error {
	missing, err := c.missing(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig may not %s in namespace %s: take those in its Secret %s, and see that --cluster-name is the tenant's name",
			strings.Join(missing, ", "), c.namespace, v1alpha1.CCMKubeconfigSecret)
	}
	if broad {
		return nil
	}
	return c.refuseExcess(ctx)
}

// served is an error that says why the management cluster does not listen to this CCM.
func (c *credentials) served(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	allowed, err := c.may(ctx, authorizationv1.ResourceAttributes{Group: v1alpha1.GroupVersion.Group, Resource: "loadbalancers", Verb: "list", Namespace: c.namespace})
	if err == nil && !allowed {
		err = fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig may not list loadbalancers in namespace %s", c.namespace)
	}
	return err
}

// missing are the rights that the credentials lack.
func (c *credentials) missing(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	var out []string
	for _, resource := range slices.Sorted(maps.Keys(needed)) {
		for _, verb := range needed[resource] {
			allowed, err := c.may(ctx, authorizationv1.ResourceAttributes{Group: v1alpha1.GroupVersion.Group, Resource: resource, Verb: verb, Namespace: c.namespace})
			if err != nil {
				return nil, err
			}
			if !allowed {
				out = append(out, verb+" "+resource)
			}
		}
	}
	return out, nil
}
