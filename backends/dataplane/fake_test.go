package dataplane

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// Otherwise a test that uses the fake would not test records that need the missing feature.
func TestTheFakeHasEveryFeature(t *testing.T) {
	d, err := (&Fake{}).Describe(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, Features(), d.Features)
	everything := model.Frontend{Restricted: true, AffinityTimeout: time.Minute, ProxyProtocol: true, MaxConnections: 1, MaxNewPerSecond: 1, IdleTimeout: time.Minute,
		Redirect: model.Redirect{Next: netip.MustParseAddr("192.0.2.2"), Limit: 1}}
	for _, everything.Forwarding = range []model.Forwarding{model.NAT, model.Transparent, model.Direct} {
		lacking, lacks := d.Lacks(everything)
		require.False(t, lacks, lacking)
	}
}
