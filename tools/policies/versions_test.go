package policies

import (
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"

	policyfiles "kubelb.k8c.io/api/policies"
)

// Kubernetes 1.30 is the first release with these policies. It allows the expressions that 1.29 supports.
func TestThePoliciesCompileOnKubernetes130(t *testing.T) {
	variables := cel.OptionalVariableDeclarations{HasAuthorizer: true}
	for _, text := range documents(t, policyfiles.Files) {
		var policy admissionregistrationv1.ValidatingAdmissionPolicy
		require.NoError(t, yaml.Unmarshal([]byte(text), &policy))
		compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(version.MajorMinor(1, 29)))
		require.NoError(t, err)
		for _, v := range policy.Spec.Variables {
			compiled := compiler.CompileAndStoreVariable(&validating.Variable{Name: v.Name, Expression: v.Expression}, variables, environment.NewExpressions)
			require.Nil(t, compiled.Error, "%s: %s", policy.Name, v.Expression)
		}
		for _, v := range policy.Spec.Validations {
			compiled := compiler.CompileCELExpression(&validating.ValidationCondition{Expression: v.Expression}, variables, environment.NewExpressions)
			require.Nil(t, compiled.Error, "%s: %s", policy.Name, v.Expression)
		}
	}
}
