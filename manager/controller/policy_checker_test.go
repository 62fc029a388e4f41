package controller

import (
	"context"
	"errors"
	"testing"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/api/policies"
)

func TestAPolicyThatIsNotInForceIsReported(t *testing.T) {
	const name = "specs.kubelb.k8c.io"
	names, err := policies.Names()
	require.NoError(t, err)
	require.Contains(t, names, name)
	ignore := admissionv1.Ignore
	policy := func() *admissionv1.ValidatingAdmissionPolicy {
		return &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	binding := func(policy string, actions ...admissionv1.ValidationAction) *admissionv1.ValidatingAdmissionPolicyBinding {
		return &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: policy, ValidationActions: actions}}
	}
	careless := policy()
	careless.Spec.FailurePolicy = &ignore
	for reason, objects := range map[string][]client.Object{
		"":                          {policy(), binding(name, admissionv1.Audit, admissionv1.Deny)},
		"the policy does not exist": {binding(name, admissionv1.Deny)},
		"its ValidatingAdmissionPolicyBinding does not exist":                                 {policy()},
		"its ValidatingAdmissionPolicyBinding names another policy":                           {policy(), binding("another", admissionv1.Deny)},
		"its ValidatingAdmissionPolicyBinding does not have the action Deny":                  {policy(), binding(name, admissionv1.Warn)},
		"spec.failurePolicy is Ignore: an object that the policy cannot evaluate is accepted": {careless, binding(name, admissionv1.Deny)},
		"cannot check whether it is in force: the API server is away for once":                nil,
	} {
		t.Run(reason, func(t *testing.T) {
			numbers, err := newMetrics(nil)
			require.NoError(t, err)
			var logged []string
			reader := fake.NewClientBuilder().WithScheme(schemeOf(t, admissionv1.AddToScheme)).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
				Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
					if objects == nil {
						return errors.New("the API server is away for once")
					}
					return c.Get(ctx, key, o, options...)
				}}).Build()
			c := &policyChecker{reader: reader, log: funcr.New(func(_, line string) { logged = append(logged, line) }, funcr.Options{}), metrics: numbers, logged: map[string]string{}}
			c.check(t.Context(), name)
			c.check(t.Context(), name)
			switch {
			case reason == "":
				require.Empty(t, logged)
				require.Equal(t, 1.0, testutil.ToFloat64(numbers.policies))
				return
			case objects == nil:
				require.Zero(t, testutil.CollectAndCount(numbers.policies), "an unknown policy has no metric")
			default:
				require.Equal(t, 0.0, testutil.ToFloat64(numbers.policies))
			}
			require.Len(t, logged, 1, "once")
			require.Contains(t, logged[0], reason)
			require.Contains(t, logged[0], name)
		})
	}
}
