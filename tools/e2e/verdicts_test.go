package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/tools/manifest"
	"kubelb.k8c.io/tools/validation"
)

// faultyServices are what people get wrong, beside what is in the corpus. Each is the spec of a Service, behind type LoadBalancer.
var faultyServices = []string{
	"ports: [{port: 80}, {port: 81}]",
	"ports: [{name: a, port: 80}, {name: a, port: 81}]",
	"ports: [{name: a, port: 80}, {name: b, port: 80}]",
	"ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]",
	"ports: [{name: a, port: 80, nodePort: 32000}, {name: b, port: 81, nodePort: 32000}]",
	"ports: [{name: A, port: 80}]",
	"ports: [{port: 0}]",
	"ports: [{port: -1}]",
	"ports: [{port: 10250}]",
	"ports: [{port: 80, protocol: HTTP}]",
	"ports: [{port: 80, targetPort: 70000}]",
	"ports: [{port: 80, targetPort: no_such}]",
	"ports: [{port: 80, appProtocol: 'a b'}]",
	"ports: []",
	"ports: [{port: 80}]\n  sessionAffinity: Cookie",
	"ports: [{port: 80}]\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
	"ports: [{port: 80}]\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
	"ports: [{port: 80}]\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}}",
	"ports: [{port: 80}]\n  externalTrafficPolicy: Nearby",
	"ports: [{port: 80}]\n  internalTrafficPolicy: Nearby",
	"ports: [{port: 80}]\n  healthCheckNodePort: 32100",
	"ports: [{port: 80}]\n  ipFamilies: [IPv4, IPv4]",
	"ports: [{port: 80}]\n  ipFamilies: [IPv5]",
	"ports: [{port: 80}]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: SingleStack",
	"ports: [{port: 80}]\n  ipFamilyPolicy: TripleStack",
	"ports: [{port: 80}]\n  loadBalancerClass: 'not a class'",
	"ports: [{port: 80}]\n  loadBalancerSourceRanges: [192.0.2.1]",
	"ports: [{port: 80}]\n  loadBalancerSourceRanges: [' 192.0.2.0/24 ']",
	"ports: [{port: 80}]\n  selector: {app: 'not a label'}",
	"type: ClusterIP\n  ports: [{port: 80, nodePort: 32000}]",
	"type: ClusterIP\n  ports: [{port: 80}]\n  loadBalancerClass: kubelb",
	"type: ClusterIP\n  ports: [{port: 80}]\n  allocateLoadBalancerNodePorts: false",
	"type: ClusterIP\n  ports: [{port: 80}]\n  loadBalancerSourceRanges: [192.0.2.0/24]",
	"type: ClusterIP\n  ports: [{port: 80}]\n  externalTrafficPolicy: Local",
}

// The rules for Services, Nodes and EndpointSlices are this repository's own; the API server's word counts.
func TestTheVerdictsOfRenderAreThoseOfTheAPIServer(t *testing.T) {
	alikeWithAll(t)
	scheme := runtime.NewScheme()
	tenant, err := lab.Tenant.Client(scheme)
	require.NoError(t, err)
	hub, err := lab.Hub.Client(scheme)
	require.NoError(t, err)
	inputs := map[string]string{}
	files, err := filepath.Glob(filepath.Join(repository, "tools/corecheck/corpus/*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		inputs[filepath.Base(file)] = string(content)
	}
	for _, spec := range faultyServices {
		if !strings.HasPrefix(spec, "type:") {
			spec = "type: LoadBalancer\n  " + spec
		}
		inputs[spec] = "apiVersion: v1\nkind: Service\nmetadata: {name: judged}\nspec:\n  " + spec + "\n"
	}
	judge := &validation.Validator{}
	for name, content := range inputs {
		objects, err := manifest.Read(name, strings.NewReader(content))
		require.NoError(t, err)
		for _, o := range objects {
			c := hub
			switch o.Typed.(type) {
			case *corev1.Service, *corev1.Node, *discoveryv1.EndpointSlice:
				c = tenant
			}
			judgedAlike(t, judge, c, o)
		}
	}
}

// judgedAlike has the API server judge the object as well, without keeping it.
func judgedAlike(t *testing.T, judge *validation.Validator, c client.Client, o manifest.Object) {
	t.Helper()
	where := o.File + ": " + o.Kind + " " + o.Typed.GetName()
	object := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(o.Content)}
	if object.GetNamespace() != "" || o.Kind == "Service" || o.Kind == "EndpointSlice" {
		object.SetNamespace("default") // which is there
	}
	ours, err := judge.Validate(t.Context(), o.Kind, o.Typed, o.Content)
	require.NoError(t, err, where)
	theirs := c.Create(t.Context(), object, client.DryRunAll, client.FieldValidation("Strict"))
	if theirs != nil && !apierrors.IsInvalid(theirs) || len(ours) == 0 && isTakenElsewhere(theirs) {
		t.Logf("%s: %v", where, theirs)
		theirs = nil
	}
	if len(ours) == 0 || theirs == nil {
		assert.Equal(t, len(ours) > 0, theirs != nil, "%s: render says %v, the API server says %v", where, ours, theirs)
		return
	}
	if strings.HasPrefix(object.GetAPIVersion(), v1alpha1.GroupVersion.Group) {
		assert.Contains(t, theirs.Error(), ours[0].Error(), where)
		return
	}
	assert.Contains(t, theirs.Error(), ours[0].Field, where)
}

// isTakenElsewhere: another cluster, an older API server, or this one at another time would take the object, or has it already.
func isTakenElsewhere(err error) bool {
	for _, word := range []string{"already allocated", "not in the valid range", "not configured on this cluster", "must not have bits set beyond the prefix length"} {
		if err != nil && strings.Contains(err.Error(), word) {
			return true
		}
	}
	return false
}
