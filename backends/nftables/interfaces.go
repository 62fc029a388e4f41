package nftables

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
)

// fastInterfaces are the names of the interfaces that flows of the fast path may take, sorted: Ethernet interfaces with an address that
// reaches beyond their link. So the interfaces of pods are left alone, which have none, and ports of bridges and bonds, whose bridge or
// bond it is that forwards.
func fastInterfaces() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addressed := map[int]bool{}
	for _, a := range addresses {
		addressed[a.LinkIndex] = addressed[a.LinkIndex] || a.IP.IsGlobalUnicast()
	}
	routers := map[int]bool{0: true}
	for _, link := range links {
		routers[link.Attrs().Index] = link.Type() == "vrf"
	}
	var names []string
	for _, link := range links {
		at := link.Attrs()
		forwards := at.EncapType == "ether" && at.Flags&net.FlagLoopback == 0 && link.Type() != "vrf"
		if forwards && addressed[at.Index] && routers[at.MasterIndex] {
			names = append(names, at.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
