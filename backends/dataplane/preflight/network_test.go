package preflight

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The scheduler gives the first thread now and then, so there are many tries.
func TestInNetworkNamespaceKeepsTheNamespaceOfTheProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	network := func(of string) string {
		name, err := os.Readlink("/proc/" + of + "/ns/net")
		require.NoError(t, err)
		return name
	}
	before := network("self")
	for range 300 {
		var inside string
		require.True(t, InNetworkNamespace(func() { inside = network("thread-self") }))
		require.NotEqual(t, before, inside)
		require.Equal(t, before, network("self"))
		require.Equal(t, before, network("thread-self"))
	}
}
