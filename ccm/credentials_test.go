package ccm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	authorization "k8s.io/client-go/kubernetes/typed/authorization/v1"
	clienttesting "k8s.io/client-go/testing"
)

// tenantsRights are the rights of the Role that the manager makes for a tenant's CCM.
func tenantsRights(a authorizationv1.ResourceAttributes) bool {
	verbs := map[string]string{"loadbalancers": "create delete get list update watch", "addresses": "create get list update watch"}
	return a.Group == "kubelb.k8c.io" && a.Namespace == "tenant-a" && strings.Contains(verbs[a.Resource], a.Verb)
}

// rightsOf returns credentials with these rights on a hub, which answers with the error if there is one.
func rightsOf(may func(authorizationv1.ResourceAttributes) bool, failed error) *credentials {
	hub := fake.NewClientset()
	hub.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
		review.Status.Allowed = may(*review.Spec.ResourceAttributes)
		return true, review, failed
	})
	return &credentials{reviews: hub.AuthorizationV1().SelfSubjectAccessReviews(), namespace: "tenant-a"}
}

func TestTheCredentialsOfATenantPassTheCheck(t *testing.T) {
	c := rightsOf(tenantsRights, nil)
	require.NoError(t, c.check(t.Context(), false))
	require.NoError(t, c.refuseExcess(t.Context()))
	require.NoError(t, c.checkHub(t.Context()))
}

// T1: whoever steals such credentials from the tenant cluster controls other tenants as well.
func TestTheCCMDoesNotStartWithMoreRightsThanATenant(t *testing.T) {
	for what, broad := range map[string]authorizationv1.ResourceAttributes{
		"create loadbalancers in every namespace": {Group: "kubelb.k8c.io", Resource: "loadbalancers", Verb: "create"},
		"get secrets in every namespace":          {Resource: "secrets", Verb: "get"},
	} {
		c := rightsOf(func(a authorizationv1.ResourceAttributes) bool { return tenantsRights(a) || a == broad }, nil)
		err := c.refuseExcess(t.Context())
		require.ErrorContains(t, err, "may "+what)
		require.ErrorContains(t, err, "--allow-broad-credentials")
		require.ErrorContains(t, err, "Secret kubelb-ccm-kubeconfig of namespace tenant-a", "the error names the right credentials")
		require.Equal(t, err, c.check(t.Context(), false))
		require.NoError(t, c.check(t.Context(), true), "the operator allows broad credentials")
	}
}

func TestEachMissingRightIsNamed(t *testing.T) {
	c := rightsOf(func(a authorizationv1.ResourceAttributes) bool {
		return tenantsRights(a) && a.Verb != "update" && a.Verb != "delete"
	}, nil)
	require.ErrorContains(t, c.check(t.Context(), false), "may not update addresses, delete loadbalancers, update loadbalancers in namespace tenant-a")
	c = rightsOf(tenantsRights, nil)
	c.namespace = "tenant-b"
	require.ErrorContains(t, c.check(t.Context(), false), "see that --cluster-name is the tenant's name")
}

func TestTheCCMStartsWithoutTheHub(t *testing.T) {
	c := rightsOf(tenantsRights, errors.New("connection refused"))
	require.NoError(t, c.refuseExcess(t.Context()), "traffic goes on, and renewals continue after the outage")
	require.ErrorContains(t, c.check(t.Context(), false), "management cluster: connection refused")
	require.ErrorContains(t, c.checkHub(t.Context()), "management cluster: connection refused")
}

func TestTheErrorForExpiredCredentialsNamesTheCommandForNewOnes(t *testing.T) {
	c := rightsOf(tenantsRights, apierrors.NewUnauthorized("Unauthorized"))
	for _, err := range []error{c.check(t.Context(), false), c.checkHub(t.Context())} {
		require.ErrorContains(t, err, "get a new kubeconfig there with 'kubelb tenants kubeconfig a'")
		require.True(t, apierrors.IsUnauthorized(err), "whoever branches on it can")
	}
}

func TestAHubThatForbidsListIsAnError(t *testing.T) {
	c := rightsOf(func(a authorizationv1.ResourceAttributes) bool { return a.Verb != "list" }, nil)
	require.ErrorContains(t, c.checkHub(t.Context()), "may not list loadbalancers in namespace tenant-a")
}

// A hub that accepts connections and does not answer does not block the CCM.
func TestTheCheckOfCredentialsHasADeadline(t *testing.T) {
	hub := fake.NewClientset()
	var left time.Duration
	hub.PrependReactor("create", "selfsubjectaccessreviews", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, context.DeadlineExceeded })
	c := &credentials{reviews: deadlines{hub.AuthorizationV1().SelfSubjectAccessReviews(), &left}, namespace: "tenant-a"}
	for _, ask := range []func(context.Context) error{c.checkHub, c.refuseExcess, func(ctx context.Context) error { return c.check(ctx, false) }} {
		left = 0
		_ = ask(t.Context())
		require.InDelta(t, credentialsTimeout.Seconds(), left.Seconds(), 1)
	}
}

// deadlines records the deadline of a request.
type deadlines struct {
	authorization.SelfSubjectAccessReviewInterface
	left *time.Duration
}

func (d deadlines) Create(ctx context.Context, review *authorizationv1.SelfSubjectAccessReview, options metav1.CreateOptions) (*authorizationv1.SelfSubjectAccessReview, error) {
	if end, limited := ctx.Deadline(); limited {
		*d.left = time.Until(end)
	}
	return d.SelfSubjectAccessReviewInterface.Create(ctx, review, options)
}
