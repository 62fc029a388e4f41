package drain

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// daemonSet returns the metadata of a DaemonSet, which is enough to see its deletion.
func daemonSet() *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(appsv1.SchemeGroupVersion.WithKind("DaemonSet"))
	return o
}

// CachedDaemonSet makes a cache watch that DaemonSet, and no other one.
func CachedDaemonSet(namespace, name string) map[client.Object]cache.ByObject {
	config := cache.Config{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name)}
	return map[client.Object]cache.ByObject{daemonSet(): {Namespaces: map[string]cache.Config{namespace: config}}}
}

// WatchDaemonSet calls deleted when the DaemonSet in the cache is deleted. It does not wait for the first read: a gateway without the right to read
// DaemonSets works all the same, and its dataplane keeps its state when the gateway ends.
func WatchDaemonSet(ctx context.Context, c cache.Cache, name string, deleted func()) error {
	informer, err := c.GetInformer(ctx, daemonSet(), cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch DaemonSet %s: %w", name, err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, o any) {
			if object, ok := o.(client.Object); ok && object.GetDeletionTimestamp() != nil {
				deleted()
			}
		},
		DeleteFunc: func(any) { deleted() },
	})
	return err
}
