// Package preflighttest runs tests in their own network namespaces.
package preflighttest

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane/preflight"
)

// InOwnNetwork calls f as preflight.InOwnNetwork does. It skips the test without root. f runs in another goroutine than the test, so it has to use
// assert and not require.
func InOwnNetwork(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	require.True(t, preflight.InOwnNetwork(f), "the kernel makes a network namespace")
}
