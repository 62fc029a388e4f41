package routes

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// OnLink returns the index of the interface to an endpoint of a direct frontend. It is an error if the endpoint is not on a segment of this host: a
// router in between would send packets for the VIP back.
func OnLink(endpoint netip.Addr) (index int, err error) {
	found, err := netlink.RouteGet(endpoint.AsSlice())
	if err != nil {
		return 0, fmt.Errorf("forwarding direct: no route to endpoint %s: %w", endpoint, err)
	}
	if len(found[0].Gw) > 0 {
		return 0, fmt.Errorf("forwarding direct: endpoint %s is behind router %s, and not on a segment of this gateway; use nat", endpoint, found[0].Gw)
	}
	return found[0].LinkIndex, nil
}
