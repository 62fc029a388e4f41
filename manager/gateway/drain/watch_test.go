package drain

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// watchedObjects is a cache that passes events to the handler of the kind that is watched.
type watchedObjects struct {
	cache.Cache
	cache.Informer
	err, handlerErr error

	kind    client.Object
	options cache.InformerGetOptions
	handler toolscache.ResourceEventHandler
}

func (w *watchedObjects) GetInformer(_ context.Context, kind client.Object, options ...cache.InformerGetOption) (cache.Informer, error) {
	w.kind = kind
	for _, option := range options {
		option(&w.options)
	}
	return w, w.err
}

func (w *watchedObjects) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	w.handler = h
	return nil, w.handlerErr
}

func node(name string, cordoned bool) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Unschedulable: cordoned}}
}

func TestTheGatewaysNodeIsReportedEachTimeThatItIsRead(t *testing.T) {
	var w watchedObjects
	var reported []bool
	require.NoError(t, WatchNode(t.Context(), &w, "n1", func(cordoned bool) { reported = append(reported, cordoned) }))
	require.IsType(t, &corev1.Node{}, w.kind)
	for says, c := range map[string]struct {
		event func()
		want  []bool
	}{
		"at first":                       {func() { w.handler.OnAdd(node("n1", true), true) }, []bool{true}},
		"cordoned":                       {func() { w.handler.OnUpdate(node("n1", false), node("n1", true)) }, []bool{true}},
		"not cordoned any more":          {func() { w.handler.OnUpdate(node("n1", true), node("n1", false)) }, []bool{false}},
		"deleted":                        {func() { w.handler.OnDelete(node("n1", true)) }, []bool{false}},
		"deleted while the API was away": {func() { w.handler.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "n1", Obj: node("n1", true)}) }, []bool{false}},
		"another Node at first":          {func() { w.handler.OnAdd(node("n2", true), false) }, nil},
		"another Node, cordoned":         {func() { w.handler.OnUpdate(node("n2", false), node("n2", true)) }, nil},
		"another Node, deleted":          {func() { w.handler.OnDelete(node("n2", true)) }, nil},
		"something that is no Node":      {func() { w.handler.OnAdd("n1", false) }, nil},
		"a deletion of something else":   {func() { w.handler.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "n1", Obj: "n1"}) }, nil},
	} {
		reported = nil
		c.event()
		require.Equal(t, c.want, reported, says)
	}
}

func TestAGatewayIsDecommissionedWhenItsDaemonSetIsDeleted(t *testing.T) {
	var w watchedObjects
	deletions := 0
	require.NoError(t, WatchDaemonSet(t.Context(), &w, "kubelb-gateway", func() { deletions++ }))
	require.Equal(t, "DaemonSet", w.kind.GetObjectKind().GroupVersionKind().Kind)
	require.Equal(t, "apps", w.kind.GetObjectKind().GroupVersionKind().Group)
	now := metav1.Now()
	for says, c := range map[string]struct {
		event func()
		want  int
	}{
		"at first":                  {func() { w.handler.OnAdd(daemonSet(), true) }, 0},
		"changed, as by an upgrade": {func() { w.handler.OnUpdate(daemonSet(), daemonSet()) }, 0},
		"marked, with a finalizer": {func() {
			marked := daemonSet()
			marked.DeletionTimestamp = &now
			w.handler.OnUpdate(daemonSet(), marked)
		}, 1},
		"gone":                           {func() { w.handler.OnDelete(daemonSet()) }, 1},
		"gone while the API was away":    {func() { w.handler.OnDelete(toolscache.DeletedFinalStateUnknown{}) }, 1},
		"something that is no DaemonSet": {func() { w.handler.OnUpdate(nil, "kubelb-gateway") }, 0},
	} {
		deletions = 0
		c.event()
		require.Equal(t, c.want, deletions, says)
	}
}

// Without the right to read an object, the first read never comes.
func TestAGatewayDoesNotWaitForTheObjectsByWhichItDrains(t *testing.T) {
	watch := map[string]func(*watchedObjects) error{
		"watch Node n1: ":       func(w *watchedObjects) error { return WatchNode(t.Context(), w, "n1", nil) },
		"watch DaemonSet ds1: ": func(w *watchedObjects) error { return WatchDaemonSet(t.Context(), w, "ds1", nil) },
	}
	for says, begin := range watch {
		var w watchedObjects
		require.NoError(t, begin(&w))
		require.NotNil(t, w.options.BlockUntilSynced)
		require.False(t, *w.options.BlockUntilSynced)
		failed := errors.New("no such kind")
		require.ErrorIs(t, begin(&watchedObjects{err: failed}), failed)
		require.ErrorContains(t, begin(&watchedObjects{err: failed}), says)
		require.ErrorIs(t, begin(&watchedObjects{handlerErr: failed}), failed)
	}
}

// A right to read one DaemonSet of one namespace is enough.
func TestOnlyTheGatewaysOwnDaemonSetIsRead(t *testing.T) {
	all := CachedDaemonSet("kubelb", "kubelb-gateway")
	require.Len(t, all, 1)
	for object, by := range all {
		require.Equal(t, "DaemonSet", object.GetObjectKind().GroupVersionKind().Kind)
		require.Len(t, by.Namespaces, 1)
		selector := by.Namespaces["kubelb"].FieldSelector
		require.True(t, selector.Matches(fields.Set{"metadata.name": "kubelb-gateway"}))
		require.False(t, selector.Matches(fields.Set{"metadata.name": "other"}))
	}
}

func TestTheLoopOfAGatewayWakesUpForADrainInTime(t *testing.T) {
	s, now := New(discarded()), time.Now()
	require.Equal(t, time.Hour, s.NextUpdateIn(time.Hour, now), "there is no reason for a drain")
	s.Cordon(true)
	s.Update(now, always)
	require.Equal(t, time.Millisecond, s.NextUpdateIn(time.Hour, now.Add(maxCordonWait)), "it is late")
	require.Equal(t, time.Nanosecond, s.NextUpdateIn(time.Nanosecond, now), "something else is due sooner")
	s.Update(now, never)
	require.Equal(t, time.Hour, s.NextUpdateIn(time.Hour, now), "nobody takes over any more")
	s.Shutdown.Begin()
	require.Equal(t, CountInterval, s.NextUpdateIn(time.Hour, now), "it counts connections")
}

func TestAGatewayDrainsForTheWholeShutdown(t *testing.T) {
	s, now := New(discarded()), time.Now()
	require.False(t, s.Shutdown.Requested())
	s.Shutdown.Request()
	require.True(t, s.Shutdown.Requested())
	s.Update(now, always)
	require.False(t, s.Draining(), "the loop begins it")
	require.False(t, s.Shutdown.Begun())
	s.Shutdown.Begin()
	require.True(t, s.Shutdown.Begun())
	s.Update(now, never)
	require.True(t, s.Draining())
	s.Request(true)
	s.Request(false)
	s.Update(now.Add(time.Second), never)
	require.Equal(t, time.Second, s.DrainingFor(now.Add(time.Second)), "a request that ends does not end it")
}

func TestConnectionsAreCountedOnlyInAShutdown(t *testing.T) {
	s := New(discarded()).Shutdown
	for range requiredIdleCounts {
		s.NoteConnections(false, 0)
	}
	require.Zero(t, s.idleCounts, "clients connect all the time")
	s.Begin()
	s.NoteConnections(false, 0)
	s.NoteConnections(false, 7)
	require.Zero(t, s.idleCounts, "a client has connected late")
	require.EqualValues(t, 7, s.connections)
}
