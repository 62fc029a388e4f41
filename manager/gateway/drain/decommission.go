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

// daemonSet is as much of one as it takes to see it deleted.
func daemonSet() *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(appsv1.SchemeGroupVersion.WithKind("DaemonSet"))
	return o
}

// CachedDaemonSet has a cache know of that DaemonSet, and of no other one.
func CachedDaemonSet(namespace, name string) map[client.Object]cache.ByObject {
	only := cache.Config{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name)}
	return map[client.Object]cache.ByObject{daemonSet(): {Namespaces: map[string]cache.Config{namespace: only}}}
}

// WatchDaemonSet calls deleted when the DaemonSet that the cache knows of is deleted. It does not wait for the first read: without the right to read
// DaemonSets the gateway works all the same, and leaves what its dataplane holds when it ends.
func WatchDaemonSet(ctx context.Context, c cache.Cache, name string, deleted func()) error {
	informer, err := c.GetInformer(ctx, daemonSet(), cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch DaemonSet %s: %w", name, err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, o any) {
			if is, ok := o.(client.Object); ok && is.GetDeletionTimestamp() != nil {
				deleted()
			}
		},
		DeleteFunc: func(any) { deleted() },
	})
	return err
}
