package manager

import (
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// With a name that is no valid label, the gateway would never get its Lease.
func TestAGatewayWithAnInvalidNameDoesNotStart(t *testing.T) {
	for name, says := range map[string]string{"": "--gateway-name= is not valid", "GW_1": "RFC 1123", strings.Repeat("a", 64): "must be no more than 63"} {
		err := Run(t.Context(), []string{"--controller=false", "--gateway-name=" + name}, io.Discard, io.Discard)
		require.ErrorContains(t, err, says)
		require.ErrorContains(t, err, "a label of its Lease")
	}
	require.NoError(t, checkGatewayName("node-1.example.com"))
}

func TestInterfacesMayBeNamedWithBlanks(t *testing.T) {
	for flag, names := range map[string][]string{"": nil, "eth0": {"eth0"}, "eth0,p0": {"eth0", "p0"}, "eth0, p0": {"eth0", "p0"}, " eth0 ,, p0 ,": {"eth0", "p0"}} {
		require.Equal(t, names, (&options{interfaces: flag}).announceInterfaces(), "%q", flag)
	}
}
