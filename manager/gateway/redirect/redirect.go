// Package redirect decides to which peer this gateway redirects packets of unknown connections. Addresses move between gateways, and the gateway that
// accepted a connection goes on to know it.
package redirect

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/membership"
)

// Strategy finds the redirect of each address. It is not safe for concurrent use.
type Strategy interface {
	// Update recalculates the redirects from the state of the peers. held are the addresses that the dataplane holds. It returns the addresses with a
	// changed redirect.
	Update(peers []membership.Peer, held map[netip.Addr]bool, now time.Time) (changed []netip.Addr)
	// RedirectOf returns the redirect of an address. The caller sends it to the dataplane.
	RedirectOf(address netip.Addr) model.Redirect
	// Remove drops an address that the dataplane does not hold any more.
	Remove(address netip.Addr)
	// NextExpiry returns when the next redirect expires, zero for never.
	NextExpiry() time.Time
	// FormerCount returns the number of addresses that are redirected to their former gateway.
	FormerCount() int
}

// redirectAddresses returns the addresses at which each peer takes redirected packets. The dataplane of a peer that has failed, or does not reach the
// hub, works as long as its host does.
func redirectAddresses(peers []membership.Peer, alive func([]netip.Addr) []netip.Addr) map[string][]netip.Addr {
	var inactive []netip.Addr
	for _, p := range peers {
		if !p.Active {
			inactive = append(inactive, p.RedirectAddresses...)
		}
	}
	answering := alive(inactive)
	byPeer := map[string][]netip.Addr{}
	for _, p := range peers {
		byPeer[p.Name] = slices.DeleteFunc(slices.Clone(p.RedirectAddresses), func(a netip.Addr) bool { return !p.Active && !slices.Contains(answering, a) })
	}
	return byPeer
}

// firstOfFamily returns the first address that has the family of the other address.
func firstOfFamily(addresses []netip.Addr, other netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(addresses, func(a netip.Addr) bool { return a.Is4() == other.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addresses[i], true
}

// OwnAddresses returns the addresses of those interfaces whose link is up. Peers redirect packets to them.
func OwnAddresses(interfaces []string) (own []netip.Addr) {
	for _, name := range interfaces {
		device, err := net.InterfaceByName(name)
		if err != nil || device.Flags&net.FlagRunning == 0 {
			continue
		}
		addresses, err := device.Addrs()
		if err != nil {
			continue
		}
		for _, text := range addresses {
			if prefix, err := netip.ParsePrefix(text.String()); err == nil && !prefix.Addr().IsLinkLocalUnicast() && !prefix.Addr().IsLoopback() {
				own = append(own, prefix.Addr())
			}
		}
	}
	return own
}
