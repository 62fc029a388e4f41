// Package foreign finds what KubeLB's own CCM has marked in a tenant cluster: objects with its finalizer, which hang in their deletion when that CCM
// has gone.
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

// Finalizer is the one that KubeLB's CCM sets. Services may have it as well, and those our CCM releases by itself.
const Finalizer = v1alpha1.CleanupFinalizer

// Secret is the kind that KubeLB's CCM marks with --enable-secret-synchronizer.
var Secret = schema.GroupKind{Kind: "Secret"}

// SyncSecret holds a copy of a Secret.
var SyncSecret = schema.GroupKind{Group: v1alpha1.GroupVersion.Group, Kind: "SyncSecret"}

// Kinds are those of layer 7 that KubeLB's CCM marks, without those that hold Secrets.
func Kinds() []schema.GroupKind {
	const gateways = "gateway.networking.k8s.io"
	return []schema.GroupKind{
		{Group: "networking.k8s.io", Kind: "Ingress"},
		{Group: gateways, Kind: "Gateway"}, {Group: gateways, Kind: "HTTPRoute"}, {Group: gateways, Kind: "GRPCRoute"},
		{Group: gateways, Kind: "TCPRoute"}, {Group: gateways, Kind: "UDPRoute"}, {Group: gateways, Kind: "TLSRoute"},
	}
}

// page is how many objects are asked for at once.
const page = 500

// Find returns the metadata of all objects of the kind that are marked; none if the cluster does not have the kind. The reader should be one that
// asks the API server itself.
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
