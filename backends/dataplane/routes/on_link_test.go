package routes

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

func TestADirectEndpointIsOnASegmentOfTheHost(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "far"}
		h := &host{pair}
		_, beyond, err := net.ParseCIDR("198.51.100.0/24")
		if !assert.NoError(t, err) || !assert.NoError(t, netlink.LinkAdd(pair)) || !assert.NoError(t, netlink.LinkSetUp(pair)) || !assert.NoError(t, netlink.AddrAdd(pair, h.address("192.0.2.1/24"))) {
			return
		}
		_, err = OnLink(netip.MustParseAddr("198.51.100.7"))
		assert.ErrorContains(t, err, "forwarding direct: no route to endpoint 198.51.100.7: ")
		index, err := OnLink(netip.MustParseAddr("192.0.2.7"))
		assert.NoError(t, err)
		assert.Equal(t, pair.Attrs().Index, index)
		assert.NoError(t, netlink.RouteAdd(&netlink.Route{Dst: beyond, Gw: net.IPv4(192, 0, 2, 254)}))
		_, err = OnLink(netip.MustParseAddr("198.51.100.7"))
		assert.EqualError(t, err, "forwarding direct: endpoint 198.51.100.7 is behind router 192.0.2.254, and not on a segment of this gateway; use nat")
	})
	require.False(t, t.Failed())
}
