// Package golden compares what dataplanes render in tests with golden files.
package golden

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

var rewrite = flag.Bool("golden", false, "write the golden files again")

// Compare compares the text with a file in testdata, and returns its path. With -golden it writes the file first.
func Compare(t testing.TB, name, text string) (path string) {
	t.Helper()
	path = filepath.Join("testdata", name)
	if *rewrite {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), text, "run 'make golden' and review the difference")
	return path
}

// Example returns a snapshot with records of each kind. Address plan: endpoints 198.51.100.11 and 2001:db8:1::11, VIPs 203.0.113.1 and 2001:db8:f::1, clients 192.0.2.0/24.
func Example() model.Snapshot {
	key := func(vip string, protocol model.Protocol, port uint16) model.FrontendKey {
		return model.FrontendKey{VIP: netip.MustParseAddr(vip), Protocol: protocol, Port: port}
	}
	endpoint := func(address string) model.Endpoint {
		return model.Endpoint{ID: address, Address: netip.MustParseAddr(address), Weight: 1}
	}
	owner := model.ObjectName{Namespace: "tenant-a", Name: "web"}
	return model.Snapshot{
		Pools: []model.Pool{
			{ID: "a/default.v4", Tenant: "a", Endpoints: []model.Endpoint{endpoint("198.51.100.11")}},
			{ID: "a/default.v6", Tenant: "a", Endpoints: []model.Endpoint{endpoint("2001:db8:1::11")}},
			{ID: "a/none.v4", Tenant: "a"},
		},
		Frontends: []model.Frontend{
			{FrontendKey: key("203.0.113.1", model.TCP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v4", TargetPort: 30080, Redirect: model.Redirect{Next: netip.MustParseAddr("192.0.2.2"), Limit: 2}},
			{FrontendKey: key("203.0.113.1", model.UDP, 53), Owner: owner, Tenant: "a", Pool: "a/none.v4", TargetPort: 30053},
			{FrontendKey: key("203.0.113.1", model.TCP, 443), Owner: owner, Tenant: "a", Pool: "a/default.v4", TargetPort: 30443,
				AffinityTimeout: 90 * time.Second, Restricted: true, SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.1/32")}},
			{FrontendKey: key("2001:db8:f::1", model.TCP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v6", TargetPort: 30080,
				Restricted: true, SourceRanges: []netip.Prefix{netip.MustParsePrefix("2001:db8:c::/64")}},
			{FrontendKey: key("203.0.113.2", model.TCP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v4", TargetPort: 30080, Forwarding: model.Direct},
			{FrontendKey: key("2001:db8:f::2", model.UDP, 80), Owner: owner, Tenant: "a", Pool: "a/default.v6", TargetPort: 30080, Forwarding: model.Transparent},
		},
	}
}
