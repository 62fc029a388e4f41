package controller

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

func TestNamespacesTakeTurnsInTheQueue(t *testing.T) {
	q := newFairQueue("", workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer q.ShutDown()
	add := func(tenant string, n int) {
		for i := range n {
			q.Add(reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "tenant-" + tenant, Name: fmt.Sprint(i)}})
		}
	}
	next := func() string {
		r, _ := q.Get()
		q.Done(r)
		return r.Namespace + "/" + r.Name
	}
	add("hostile", 500)
	require.Equal(t, "tenant-hostile/0", next())
	add("a", 2)
	add("hostile", 500) // the same objects again: each is queued once
	require.Equal(t, 502, q.Len())
	require.Equal(t, []string{"tenant-hostile/1", "tenant-a/0", "tenant-hostile/2", "tenant-a/1", "tenant-hostile/3", "tenant-hostile/4"}, []string{next(), next(), next(), next(), next(), next()})
	add("b", 1)
	require.Contains(t, []string{next(), next()}, "tenant-b/0")
	for q.Len() > 0 {
		next()
	}
}
