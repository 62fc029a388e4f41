package policies

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured/unstructuredscheme"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/api/crds"
	policyfiles "kubelb.k8c.io/api/policies"
)

// The service accounts of the chart, and a tenant's.
var (
	tenant  = &user.DefaultInfo{Name: "system:serviceaccount:tenant-a:kubelb-ccm"}
	manager = &user.DefaultInfo{Name: "system:serviceaccount:kubelb:kubelb-manager"}
	gateway = &user.DefaultInfo{Name: "system:serviceaccount:kubelb:kubelb-gateway", Extra: map[string][]string{"authentication.kubernetes.io/node-name": {"one"}}}
)

// plurals are the resource names of kinds.
var plurals = map[string]string{"LoadBalancer": "loadbalancers", "Addresses": "addresses", "Tenant": "tenants", "Gateway": "gateways", "Lease": "leases", "ResourceQuota": "resourcequotas"}

// server is the part of an API server that handles writes: the field manager and the admission policies.
type server struct {
	plugin *validating.Plugin
	types  map[string]managedfields.TypeConverter
}

// newServer enforces the policies of api/policies. The chart replaces texts in them, and so do replacements: old and new text in turn.
func newServer(t *testing.T, replacements ...string) *server {
	t.Helper()
	objects := []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kubelb"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tenant-a", Labels: map[string]string{"kubelb.k8c.io/managed-by": "kubelb"}}},
	}
	for _, text := range documents(t, policyfiles.Files) {
		text = strings.NewReplacer(replacements...).Replace(text)
		var policy admissionregistrationv1.ValidatingAdmissionPolicy
		require.NoError(t, yaml.Unmarshal([]byte(text), &policy))
		if policy.Kind == "ValidatingAdmissionPolicyBinding" {
			var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
			require.NoError(t, yaml.UnmarshalStrict([]byte(text), &binding))
			objects = append(objects, &binding)
			continue
		}
		require.NoError(t, yaml.UnmarshalStrict([]byte(text), &policy))
		scheme.Scheme.Default(&policy)
		// The API server's own defaults, which no client library sets.
		allScopes := admissionregistrationv1.AllScopes
		equivalent := admissionregistrationv1.Equivalent
		for i := range policy.Spec.MatchConstraints.ResourceRules {
			policy.Spec.MatchConstraints.ResourceRules[i].Scope = &allScopes
		}
		policy.Spec.MatchConstraints.MatchPolicy = &equivalent
		if policy.Spec.MatchConstraints.NamespaceSelector == nil {
			policy.Spec.MatchConstraints.NamespaceSelector = &metav1.LabelSelector{}
		}
		policy.Spec.MatchConstraints.ObjectSelector = &metav1.LabelSelector{}
		objects = append(objects, &policy)
	}
	plugin, err := validating.NewPlugin(nil)
	require.NoError(t, err)
	clients := fake.NewClientset(objects...)
	informers := informers.NewSharedInformerFactory(clients, 0)
	plugin.SetExternalKubeInformerFactory(informers)
	plugin.SetExternalKubeClientSet(clients)
	plugin.SetDynamicClient(dynamicfake.NewSimpleDynamicClient(scheme.Scheme))
	plugin.SetRESTMapper(meta.NewDefaultRESTMapper(nil))
	plugin.SetUnconditionalAuthorizer(authorizerfactory.NewAlwaysDenyAuthorizer())
	plugin.SetDrainedNotification(t.Context().Done())
	require.NoError(t, plugin.ValidateInitialization())
	informers.Start(t.Context().Done())
	informers.WaitForCacheSync(t.Context().Done())
	require.True(t, plugin.WaitForReady())
	return &server{plugin: plugin, types: typesOf(t)}
}

// documents returns the YAML documents of the files.
func documents(t *testing.T, files fs.ReadDirFS) (out []string) {
	t.Helper()
	entries, err := files.ReadDir(".")
	require.NoError(t, err)
	for _, entry := range entries {
		text, err := fs.ReadFile(files, entry.Name())
		require.NoError(t, err)
		out = append(out, strings.Split(string(text), "\n---\n")...)
	}
	return out
}

// typesOf returns the types of KubeLB's kinds, which the field manager needs to find the fields of an object.
func typesOf(t *testing.T) map[string]managedfields.TypeConverter {
	t.Helper()
	types := map[string]managedfields.TypeConverter{}
	for _, text := range documents(t, crds.Files) {
		var crd apiextensionsv1.CustomResourceDefinition
		require.NoError(t, yaml.Unmarshal([]byte(text), &crd))
		api, err := builder.BuildOpenAPIV3(&crd, crd.Spec.Versions[0].Name, builder.Options{})
		require.NoError(t, err)
		types[crd.Spec.Names.Kind], err = managedfields.NewTypeConverter(api.Components.Schemas, false)
		require.NoError(t, err)
	}
	return types
}

// object parses YAML into the type that an API server uses for the kind.
func object(t *testing.T, text string) runtime.Object {
	t.Helper()
	var o unstructured.Unstructured
	require.NoError(t, yaml.Unmarshal([]byte(text), &o.Object))
	if o.GroupVersionKind().Group == "kubelb.k8c.io" {
		return &o
	}
	typed, err := scheme.Scheme.New(o.GroupVersionKind())
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal([]byte(text), typed))
	return typed
}

// changed returns a changed copy of the object.
func changed(o runtime.Object, change func(metav1.Object)) runtime.Object {
	out := o.DeepCopyObject()
	change(out.(metav1.Object))
	return out
}

// create and update return the object that would be stored when the account writes it, and the refusal.
func (s *server) create(t *testing.T, as user.Info, o runtime.Object) (runtime.Object, error) {
	return s.write(t, as, nil, o, "")
}

func (s *server) update(t *testing.T, as user.Info, old, o runtime.Object) (runtime.Object, error) {
	return s.write(t, as, old, o, "")
}

// write runs the field manager and then the policies, like the API server's handlers.
func (s *server) write(t *testing.T, as user.Info, old, o runtime.Object, subresource string) (runtime.Object, error) {
	t.Helper()
	kind := o.GetObjectKind().GroupVersionKind()
	types := s.types[kind.Kind]
	if kind.Group != "kubelb.k8c.io" {
		types = managedfields.NewDeducedTypeConverter()
	}
	fields, err := newFieldManager(types, kind, subresource)
	require.NoError(t, err)
	operation, before := admission.Update, old
	if old == nil {
		operation = admission.Create
		if before, err = newEmpty(kind); err != nil {
			t.Fatal(err)
		}
	}
	o = fields.UpdateNoErrors(before, o.DeepCopyObject(), as.GetName())
	metadata := o.(metav1.Object)
	plural, found := plurals[kind.Kind]
	require.True(t, found, kind.Kind)
	var oldObject runtime.Object
	if old != nil {
		oldObject = old
	}
	attributes := admission.NewAttributesRecord(o, oldObject, kind, metadata.GetNamespace(), metadata.GetName(), kind.GroupVersion().WithResource(plural), subresource, operation, nil, false, as)
	return o, s.plugin.Validate(t.Context(), attributes, admission.NewObjectInterfacesFromScheme(scheme.Scheme))
}

func newEmpty(kind schema.GroupVersionKind) (runtime.Object, error) {
	if kind.Group == "kubelb.k8c.io" {
		return unstructuredscheme.NewUnstructuredCreator().New(kind)
	}
	return scheme.Scheme.New(kind)
}

func newFieldManager(types managedfields.TypeConverter, kind schema.GroupVersionKind, subresource string) (*managedfields.FieldManager, error) {
	if kind.Group == "kubelb.k8c.io" {
		return managedfields.NewDefaultCRDFieldManager(types, noConversion{}, unstructuredscheme.NewUnstructuredDefaulter(), unstructuredscheme.NewUnstructuredCreator(), kind, kind.GroupVersion(), subresource, nil)
	}
	return managedfields.NewDefaultFieldManager(types, noConversion{}, scheme.Scheme, scheme.Scheme, kind, kind.GroupVersion(), subresource, nil)
}

// noConversion is a converter for kinds with one version.
type noConversion struct{}

func (noConversion) Convert(in, out, _ any) error { return fmt.Errorf("convert %T into %T", in, out) }

func (noConversion) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}

func (noConversion) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
