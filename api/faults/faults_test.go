package faults

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
)

func TestAFaultThatWasToldEndsOnce(t *testing.T) {
	var told Told
	web, other := types.NamespacedName{Namespace: "shop", Name: "web"}, types.NamespacedName{Namespace: "shop", Name: "other"}
	require.False(t, told.End(web), "nothing was told")
	told.Begin(web)
	told.Begin(web)
	require.False(t, told.End(other))
	require.True(t, told.End(web))
	require.False(t, told.End(web))
	require.Empty(t, told.objects)
}
