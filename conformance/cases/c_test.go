package cases

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFailuresNamePlacesByFile(t *testing.T) {
	c := &C{}
	c.Errorf("Error Trace:\t/some/where/conformance/cases/drain.go:17\n\t/opt/go/src/runtime/asm_amd64.s:1771\nat /proc/self/net/tcp: %s", "no")
	require.Equal(t, []string{"Error Trace:\tdrain.go:17\n\tasm_amd64.s:1771\nat /proc/self/net/tcp: no"}, c.failures)
}
