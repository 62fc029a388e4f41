// Package redirect decides to which other gateway this one redirects packets of connections that it does not know. Addresses move between
// gateways, and their connections stay known to the gateway that accepted them.
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
	// Update brings the redirects to what is known of the peers now. It returns the addresses whose redirect has changed. held are the addresses
	// that the dataplane holds.
	Update(peers []membership.Peer, held map[netip.Addr]bool, now time.Time) (changed []netip.Addr)
	// Send returns the redirect of an address, and notes that the dataplane is about to be sent it.
	Send(address netip.Addr) model.Handover
	// Forget drops an address that the dataplane does not hold any more.
	Forget(address netip.Addr)
	// Expires is when the next redirect ends by the passing of time alone. It is zero for never.
	Expires() time.Time
	// Former is the number of addresses that are redirected to the gateway that owned them before.
	Former() int
}

// addressesOf returns where each peer takes redirected packets. The dataplane of a peer whose process has ended or failed, or does not reach the
// hub, works as long as its host does.
func addressesOf(peers []membership.Peer, alive func([]netip.Addr) []netip.Addr) map[string][]netip.Addr {
	var unsure []netip.Addr
	for _, p := range peers {
		if !p.Active {
			unsure = append(unsure, p.RedirectAddresses...)
		}
	}
	working := alive(unsure)
	of := map[string][]netip.Addr{}
	for _, p := range peers {
		of[p.Name] = slices.DeleteFunc(slices.Clone(p.RedirectAddresses), func(a netip.Addr) bool { return !p.Active && !slices.Contains(working, a) })
	}
	return of
}

// ofFamily returns the first of the addresses that has the family of the other address.
func ofFamily(addresses []netip.Addr, other netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(addresses, func(a netip.Addr) bool { return a.Is4() == other.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addresses[i], true
}

// OwnAddresses returns the addresses on those of the interfaces whose link is up. Peers redirect packets to them.
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
