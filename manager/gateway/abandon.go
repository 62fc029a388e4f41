package gateway

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

// WatchDaemonSet has a cache know of that one, and of no other DaemonSet.
func WatchDaemonSet(namespace, name string) map[client.Object]cache.ByObject {
	only := cache.Config{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name)}
	return map[client.Object]cache.ByObject{daemonSet(): {Namespaces: map[string]cache.Config{namespace: only}}}
}

// watchDaemonSet takes note when the DaemonSet is deleted. It is not waited for: without the right to read it the gateway works all
// the same, and leaves what it holds when it ends.
func (g *Gateway) watchDaemonSet(ctx context.Context) error {
	informer, err := g.cache.GetInformer(ctx, daemonSet(), cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch DaemonSet %s: %w", g.options.PurgeWith, err)
	}
	abandon := func() {
		if !g.abandoned.Swap(true) {
			g.log.Info("the DaemonSet is deleted: this gateway's dataplane will be, too, when it ends", "daemonset", g.options.PurgeWith)
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, o any) {
			if is, ok := o.(client.Object); ok && is.GetDeletionTimestamp() != nil {
				abandon()
			}
		},
		DeleteFunc: func(any) { abandon() },
	})
	return err
}
