// Package foreign finds objects in a tenant cluster with the finalizer of KubeLB's own CCM. After that CCM is uninstalled, nothing removes the finalizer, so
// the deletion of these objects hangs.
package foreign

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// Finalizer is the finalizer that KubeLB's CCM sets. Services may have it, too; our CCM removes it from Services.
const Finalizer = v1alpha1.CleanupFinalizer

// Secret is a kind that KubeLB's CCM marks if it runs with --enable-secret-synchronizer.
var Secret = schema.GroupKind{Kind: "Secret"}

// SyncSecret is KubeLB's kind for copies of Secrets.
var SyncSecret = schema.GroupKind{Group: v1alpha1.GroupVersion.Group, Kind: "SyncSecret"}

// Kinds returns the kinds of layer 7 that KubeLB's CCM marks. Secret and SyncSecret are not among them.
func Kinds() []schema.GroupKind {
	const gateways = "gateway.networking.k8s.io"
	return []schema.GroupKind{
		{Group: "networking.k8s.io", Kind: "Ingress"},
		{Group: gateways, Kind: "Gateway"}, {Group: gateways, Kind: "HTTPRoute"}, {Group: gateways, Kind: "GRPCRoute"},
		{Group: gateways, Kind: "TCPRoute"}, {Group: gateways, Kind: "UDPRoute"}, {Group: gateways, Kind: "TLSRoute"},
	}
}

// page is the number of objects in each request.
const page = 500

// Find returns the metadata of all objects of the kind that have the finalizer. It returns none if the cluster does not have the kind. Use a reader without a
// cache: a cache would watch the kind from then on.
func Find(ctx context.Context, reader client.Reader, mapper meta.RESTMapper, kind schema.GroupKind, options ...client.ListOption) ([]metav1.PartialObjectMetadata, error) {
	mapping, err := mapper.RESTMapping(kind)
	if meta.IsNoMatchError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", kind.Kind, err)
	}
	var marked []metav1.PartialObjectMetadata
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(mapping.GroupVersionKind)
	for {
		err := reader.List(ctx, list, slices.Concat(options, []client.ListOption{client.Limit(page), client.Continue(list.Continue)})...)
		if meta.IsNoMatchError(err) {
			return nil, nil
		}
		if err != nil {
			return marked, fmt.Errorf("list %s: %w", mapping.Resource.GroupResource(), err)
		}
		for _, o := range list.Items {
			if slices.Contains(o.Finalizers, Finalizer) {
				o.SetGroupVersionKind(mapping.GroupVersionKind)
				marked = append(marked, o)
			}
		}
		if list.Continue == "" {
			return marked, nil
		}
	}
}
