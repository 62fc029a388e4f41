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

// faultyServices are specs of Services with mistakes that are not in the corpus. The type is LoadBalancer unless the spec begins with another one.
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

// kubelb render has its own rules for Services, Nodes and EndpointSlices. They must agree with the API server.
func TestRenderRefusesTheSameObjectsAsTheAPIServer(t *testing.T) {
	independentOfDataplane(t)
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
		inputs[spec] = "apiVersion: v1\nkind: Service\nmetadata: {name: example}\nspec:\n  " + spec + "\n"
	}
	validator := &validation.Validator{}
	for name, content := range inputs {
		objects, err := manifest.Read(name, strings.NewReader(content))
		require.NoError(t, err)
		for _, o := range objects {
			c := hub
			switch o.Typed.(type) {
			case *corev1.Service, *corev1.Node, *discoveryv1.EndpointSlice:
				c = tenant
			}
			requireSameVerdict(t, validator, c, o)
		}
	}
}

// requireSameVerdict validates the object with render's rules and by a dry run on the API server, and compares the results.
func requireSameVerdict(t *testing.T, validator *validation.Validator, c client.Client, o manifest.Object) {
	t.Helper()
	where := o.File + ": " + o.Kind + " " + o.Typed.GetName()
	object := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(o.Content)}
	if object.GetNamespace() != "" || o.Kind == "Service" || o.Kind == "EndpointSlice" {
		object.SetNamespace("default") // this namespace exists
	}
	local, err := validator.Validate(t.Context(), o.Kind, o.Typed, o.Content)
	require.NoError(t, err, where)
	remote := c.Create(t.Context(), object, client.DryRunAll, client.FieldValidation("Strict"))
	if remote != nil && !apierrors.IsInvalid(remote) || len(local) == 0 && acceptedElsewhere(remote) {
		t.Logf("%s: %v", where, remote)
		remote = nil
	}
	if len(local) == 0 || remote == nil {
		assert.Equal(t, len(local) > 0, remote != nil, "%s: render returns %v, the API server returns %v", where, local, remote)
		return
	}
	if strings.HasPrefix(object.GetAPIVersion(), v1alpha1.GroupVersion.Group) {
		assert.Contains(t, remote.Error(), local[0].Error(), where)
		return
	}
	assert.Contains(t, remote.Error(), local[0].Field, where)
}

// acceptedElsewhere reports whether the refusal depends on the cluster: another cluster, an older API server, or this one at another time would accept the object.
func acceptedElsewhere(err error) bool {
	for _, word := range []string{"already allocated", "not in the valid range", "not configured on this cluster", "must not have bits set beyond the prefix length"} {
		if err != nil && strings.Contains(err.Error(), word) {
			return true
		}
	}
	return false
}
