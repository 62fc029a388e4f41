package policies

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/api/crds"
)

const (
	tenantsLease  = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {namespace: tenant-a, name: kubelb-ccm, labels: {kubelb.k8c.io/managed-by: kubelb}}\nspec: {holderIdentity: ccm, leaseDurationSeconds: 60}"
	gatewaysLease = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {namespace: kubelb, name: one, labels: {kubelb.k8c.io/gateway: one}, annotations: {kubelb.k8c.io/view: \"{}\"}}\nspec: {holderIdentity: one}"
)

// wide makes many sibling fields, deep makes nested fields.
func wide(n int) string {
	var keys []string
	for i := range n {
		keys = append(keys, fmt.Sprintf(`"f:%040d":{}`, i))
	}
	return `{"f:metadata":{"f:annotations":{` + strings.Join(keys, ",") + `}}}`
}

func deep(n int, inside string) string {
	return strings.Repeat(`{"f:a":`, n) + inside + strings.Repeat("}", n)
}

// cpu is the user CPU time of this process. It does not depend on other load of the host.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano())
}

// applied adds entries to managedFields, as if another manager had applied the fields.
func applied(n int, fields string) func(metav1.Object) {
	return func(o metav1.Object) {
		entries := o.GetManagedFields()
		version := o.(runtime.Object).GetObjectKind().GroupVersionKind().GroupVersion().String()
		for i := range n {
			entries = append(entries, metav1.ManagedFieldsEntry{Manager: fmt.Sprint("hostile-", i), Operation: metav1.ManagedFieldsOperationApply, APIVersion: version,
				FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(fields)})
		}
		o.SetManagedFields(entries)
	}
}

// asUnstructured converts a built-in object as API servers older than 1.37 do for the policies.
func asUnstructured(t *testing.T, o runtime.Object) runtime.Object {
	t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	require.NoError(t, err)
	return &unstructured.Unstructured{Object: content}
}

// T23: the API server stores managedFields that a client sends, up to the size of a request. No program reads them, but all caches hold them.
func TestManagedFieldsAreBounded(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct {
		what, text string
		as         user.Info
		creates    bool
	}{
		{"a LoadBalancer of a tenant", loadBalancer, tenant, true},
		{"Addresses of a tenant", addresses, tenant, true},
		{"the Lease of a tenant", tenantsLease, tenant, false},
		{"a Gateway", gatewayObject, gateway, true},
		{"the Lease of a gateway", gatewaysLease, gateway, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			stored, err := s.create(t, manager, object(t, c.text))
			if c.creates {
				stored, err = s.create(t, c.as, object(t, c.text))
			}
			require.NoError(t, err)
			require.NotEmpty(t, stored.(metav1.Object).GetManagedFields(), "the field manager writes entries")
			_, err = s.update(t, c.as, stored, stored)
			require.NoError(t, err)
			_, err = s.update(t, c.as, stored, changed(stored, applied(2, wide(10))))
			require.NoError(t, err, "a few other managers are allowed")

			for attempt, change := range map[string]func(metav1.Object){
				"many fields":             applied(1, wide(30_000)),
				"many managers":           applied(1000, wide(1)),
				"many managers of fields": applied(20, wide(200)),
				"long names":              applied(1, `{"f:metadata":{"f:`+strings.Repeat("a", 1_400_000)+`":{}}}`),
				// The API server would need ten seconds to make one text of this, and four for a loop over the many fields.
				"nested fields":     applied(1, deep(4000, wide(25_000))),
				"nested too deeply": applied(1, deep(6, "{}")),
			} {
				hostile := changed(stored, change)
				start := cpu(t)
				out, err := s.update(t, c.as, stored, hostile)
				require.ErrorContains(t, err, "metadata.managedFields", attempt)
				require.Less(t, cpu(t)-start, 4*time.Second, attempt)
				require.Greater(t, len(out.(metav1.Object).GetManagedFields()), 1, "the field manager keeps what was sent")
				if c.creates {
					_, err = s.create(t, c.as, changed(object(t, c.text), change))
					require.ErrorContains(t, err, "metadata.managedFields", attempt)
				}
				if _, is := hostile.(*unstructured.Unstructured); !is {
					_, err = s.update(t, c.as, asUnstructured(t, stored), asUnstructured(t, hostile))
					require.ErrorContains(t, err, "metadata.managedFields", attempt)
				}
			}
		})
	}
}

// A LoadBalancer with as many ports, labels and annotations as are allowed, written by several programs.
func TestTheLargestAllowedObjectHasRoomForItsManagedFields(t *testing.T) {
	s := newServer(t)
	list := func(n int, format string) string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf(format, strings.Repeat("n", 50), i+1000))
		}
		return strings.Join(out, ", ")
	}
	prefix := strings.Repeat("p", 60) + "." + strings.Repeat("q", 60) + ".example.com/"
	text := "apiVersion: kubelb.k8c.io/v1alpha1\nkind: LoadBalancer\nmetadata: {namespace: tenant-a, name: web, labels: {" + list(32, prefix+"%s%d: x") + "}, annotations: {" + list(64, prefix+"%s%d: x") +
		"}}\nspec: {ports: [" + list(256, "{name: %s%[2]d, port: %[2]d, protocol: TCP}") + "]}"
	stored, err := s.create(t, tenant, object(t, text))
	require.NoError(t, err)
	for i := range 12 {
		other := &user.DefaultInfo{Name: fmt.Sprint("operator-", i)}
		stored, err = s.update(t, other, stored, changed(stored, func(o metav1.Object) {
			o.SetAnnotations(map[string]string{fmt.Sprint(prefix, i): "x"})
		}))
		require.NoError(t, err)
	}
	stored, err = s.update(t, manager, stored, changed(stored, finalizers(cleanup)))
	require.NoError(t, err)
	o := stored.DeepCopyObject().(*unstructured.Unstructured)
	require.NoError(t, unstructured.SetNestedMap(o.Object, map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "True"}}}, "status"))
	stored, err = s.write(t, manager, stored, o, "status")
	require.NoError(t, err)
	_, err = s.update(t, tenant, stored, object(t, text+"\n"))
	require.ErrorContains(t, err, "metadata.finalizers", "this shows that the policy was evaluated")
	_, err = s.update(t, tenant, stored, changed(object(t, text), finalizers(cleanup)))
	require.NoError(t, err)
}

// The managedFields of a long status do not prevent a write of labels, and do not allow further entries.
func TestAGatewayWithALongStatusCanBeUpdated(t *testing.T) {
	s := newServer(t, "dyn({})", `dyn({"site":"south"})`)
	stored, err := s.create(t, gateway, object(t, gatewayObject))
	require.NoError(t, err)
	o := stored.DeepCopyObject().(*unstructured.Unstructured)
	var tenants []any
	for i := range 1000 {
		tenants = append(tenants, map[string]any{"tenant": fmt.Sprint("a-tenant-with-a-long-name-", i), "connectionsPerPort": int64(1)})
	}
	require.NoError(t, unstructured.SetNestedMap(o.Object, map[string]any{"tenants": tenants}, "status"))
	stored, err = s.write(t, gateway, stored, o, "status")
	require.NoError(t, err)
	require.Greater(t, len(stored.(metav1.Object).GetManagedFields()[1].FieldsV1.GetRawString()), 16384)

	south := labelled(map[string]string{"site": "south"})
	_, err = s.update(t, gateway, stored, changed(stored, south))
	require.NoError(t, err)
	_, err = s.update(t, gateway, stored, changed(stored, func(o metav1.Object) {
		applied(1, wide(1000))(o)
		entries := o.GetManagedFields()
		entries[len(entries)-1].Subresource = "status"
		o.SetManagedFields(entries)
	}))
	require.ErrorContains(t, err, "metadata.managedFields")
}

// A policy allows five levels of fields in objects that a tenant writes, and four in others, whose status it does not check.
func TestFieldsAreNotNestedMoreDeeplyThanThePoliciesAllow(t *testing.T) {
	for _, text := range documents(t, crds.Files) {
		var crd apiextensionsv1.CustomResourceDefinition
		require.NoError(t, yaml.Unmarshal([]byte(text), &crd))
		require.LessOrEqual(t, levels(crd.Spec.Versions[0].Schema.OpenAPIV3Schema), 5, crd.Name)
		if crd.Spec.Names.Kind == "Gateway" {
			spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
			require.LessOrEqual(t, 1+levels(&spec), 4)
		}
	}
}

// levels is the depth of the field names in managedFields.
func levels(s *apiextensionsv1.JSONSchemaProps) (n int) {
	for _, field := range s.Properties {
		n = max(n, 1+levels(&field))
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		n = max(n, 1+levels(s.AdditionalProperties.Schema))
	}
	if s.Items != nil && s.Items.Schema != nil && s.XListType != nil && *s.XListType != "atomic" {
		n = max(n, 1+levels(s.Items.Schema))
	}
	return n
}
