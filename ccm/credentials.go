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

// requiredVerbs are the verbs that the CCM uses on the hub in its tenant's namespace, by resource.
var requiredVerbs = map[string][]string{
	"loadbalancers": {"create", "delete", "get", "list", "update", "watch"},
	"addresses":     {"create", "get", "list", "update", "watch"},
}

// excessive are rights that the credentials of a tenant never have. Whoever steals credentials with these rights from the tenant cluster controls other tenants,
// too.
var excessive = []authorizationv1.ResourceAttributes{
	{Group: v1alpha1.GroupVersion.Group, Resource: "loadbalancers", Verb: "create"},
	{Resource: "secrets", Verb: "get"},
}

// credentialsTimeout bounds each check.
const credentialsTimeout = 10 * time.Second

// credentials asks the hub what the CCM may do there.
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

func (c *credentials) allowed(ctx context.Context, a authorizationv1.ResourceAttributes) (bool, error) {
	review, err := c.reviews.Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}}, metav1.CreateOptions{})
	if apierrors.IsUnauthorized(err) {
		return false, fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig have expired, or were rotated or revoked: get a new kubeconfig there with '%s': %w", kubeconfigCommand(c.namespace), err)
	}
	if err != nil {
		return false, fmt.Errorf("management cluster: %w", err)
	}
	return review.Status.Allowed, nil
}

// refuseExcess returns an error that names a right that the credentials should not have. It returns nil if the hub does not answer: the CCM must be able
// to start then.
func (c *credentials) refuseExcess(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	for _, right := range excessive {
		allowed, err := c.allowed(ctx, right)
		if err != nil {
			log.FromContext(ctx).Error(err, "cannot check whether the credentials of --kubelb-kubeconfig have too many rights; starting without the check")
			return nil
		}
		if allowed {
			return fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig may %s %s in every namespace, which a tenant's credentials may not: use the credentials in the Secret %s of namespace %s, or set --allow-broad-credentials",
				right.Verb, right.Resource, v1alpha1.CCMKubeconfigSecret, c.namespace)
		}
	}
	return nil
}

// check returns an error if the hub does not answer, or if the credentials have too few or too many rights. broad: too many rights are accepted.
func (c *credentials) check(ctx context.Context, broad bool) error {
	missing, err := c.missingRights(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig may not %s in namespace %s: use the credentials in the Secret %s of that namespace, and see that --cluster-name is the tenant's name",
			strings.Join(missing, ", "), c.namespace, v1alpha1.CCMKubeconfigSecret)
	}
	if broad {
		return nil
	}
	return c.refuseExcess(ctx)
}

// checkHub returns an error that says why the hub does not accept requests of this CCM.
func (c *credentials) checkHub(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	allowed, err := c.allowed(ctx, authorizationv1.ResourceAttributes{Group: v1alpha1.GroupVersion.Group, Resource: "loadbalancers", Verb: "list", Namespace: c.namespace})
	if err == nil && !allowed {
		err = fmt.Errorf("management cluster: the credentials of --kubelb-kubeconfig may not list loadbalancers in namespace %s", c.namespace)
	}
	return err
}

// missingRights returns the rights that the credentials do not have, such as "update addresses".
func (c *credentials) missingRights(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	var out []string
	for _, resource := range slices.Sorted(maps.Keys(requiredVerbs)) {
		for _, verb := range requiredVerbs[resource] {
			allowed, err := c.allowed(ctx, authorizationv1.ResourceAttributes{Group: v1alpha1.GroupVersion.Group, Resource: resource, Verb: verb, Namespace: c.namespace})
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
