package cluster

import (
	"bytes"
	"context"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/jsonpath"
)

// reader reads objects as kubectl get does. Tests read every tenth of a second until something holds, and each process of kubectl costs about as much
// processor time as a second of the programs under test.
type reader struct {
	objects dynamic.Interface
	mapper  meta.ResettableRESTMapper
	// resources knows short names.
	resources meta.RESTMapper
}

// newReader returns a reader with the administrator's rights.
func (c *ControlPlane) newReader() (*reader, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	config.WarningHandler = rest.NoWarnings{}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	api, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(api)
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(cached)
	return &reader{objects: objects, mapper: mapper, resources: restmapper.NewShortcutExpander(mapper, cached, nil)}, nil
}

// Get returns what the JSONPath template finds in the object, which is named resource/name. A missing key is empty. A missing object is an error.
func (c *ControlPlane) Get(ctx context.Context, namespace, object, path string) (string, error) {
	resource, name, _ := strings.Cut(object, "/")
	objects, err := c.reader.in(namespace, resource)
	if err != nil {
		return "", err
	}
	found, err := objects.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return find(path, found.Object)
}

// List returns what the JSONPath template finds in the list of the objects that the options select. An empty namespace selects all namespaces.
func (c *ControlPlane) List(ctx context.Context, namespace, resource, path string, options metav1.ListOptions) (string, error) {
	objects, err := c.reader.in(namespace, resource)
	if err != nil {
		return "", err
	}
	found, err := objects.List(ctx, options)
	if err != nil {
		return "", err
	}
	return find(path, found.UnstructuredContent())
}

// in returns the objects of a resource, such as svc or gateways.kubelb.k8c.io. It ignores the namespace if the resource is of the whole cluster.
func (r *reader) in(namespace, resource string) (dynamic.ResourceInterface, error) {
	known, err := r.resourceFor(resource)
	if meta.IsNoMatchError(err) { // A CustomResourceDefinition may be new.
		r.mapper.Reset()
		known, err = r.resourceFor(resource)
	}
	if err != nil {
		return nil, err
	}
	kind, err := r.mapper.KindFor(known)
	if err != nil {
		return nil, err
	}
	mapping, err := r.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return r.objects.Resource(known), nil
	}
	return r.objects.Resource(known).Namespace(namespace), nil
}

// resourceFor finds a resource. In gateways.kubelb.k8c.io all after the first dot may be the group, or kubelb the version.
func (r *reader) resourceFor(resource string) (known schema.GroupVersionResource, err error) {
	full, group := schema.ParseResourceArg(resource)
	if full != nil {
		if known, err = r.resources.ResourceFor(*full); !meta.IsNoMatchError(err) {
			return known, err
		}
	}
	return r.resources.ResourceFor(group.WithVersion(""))
}

func find(path string, in any) (string, error) {
	template := jsonpath.New("path").AllowMissingKeys(true)
	if err := template.Parse(path); err != nil {
		return "", err
	}
	var out bytes.Buffer
	err := template.Execute(&out, in)
	return out.String(), err
}
