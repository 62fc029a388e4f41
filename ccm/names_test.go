package ccm

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/translate"
)

// The hub would only report that it resolves no names.
func TestAHostNameThatDoesNotResolveIsNamedWithTheReason(t *testing.T) {
	c := Config{Resolver: net.DefaultResolver}
	out, failed := c.resolve(t.Context(), []translate.Address{{IP: "198.51.100.11"}, {Hostname: "node.invalid."}})
	require.Equal(t, []translate.Address{{IP: "198.51.100.11"}}, out)
	require.Len(t, failed, 1)
	require.Contains(t, failed[0], "node name node.invalid. does not resolve: ")
	require.Equal(t, "no such host", lookupFailure(&net.DNSError{IsNotFound: true}))
	require.Contains(t, lookupFailure(&net.DNSError{IsTimeout: true, Err: "read udp 192.0.2.1:43211->192.0.2.53:53: i/o timeout"}), "not answered", "without the port, which differs each time")
}
