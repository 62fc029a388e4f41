package faults

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
)

func TestAReportedFaultEndsOnce(t *testing.T) {
	var tracker Tracker
	web, other := types.NamespacedName{Namespace: "shop", Name: "web"}, types.NamespacedName{Namespace: "shop", Name: "other"}
	require.False(t, tracker.Remove(web), "no fault was reported")
	tracker.Add(web)
	tracker.Add(web)
	require.False(t, tracker.Remove(other))
	require.True(t, tracker.Remove(web))
	require.False(t, tracker.Remove(web))
	require.Empty(t, tracker.objects)
}
