package nftables

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

// fastInterfaces returns the interfaces for the fast path, sorted: Ethernet interfaces with a global address. It excludes interfaces of pods, which
// have no global address, or, with CNI plugins that route to each pod, one without a network. It also excludes ports of bridges and bonds, since
// the bridge or bond forwards for them.
func fastInterfaces() ([]string, error) {
	links, err := dumps.Read(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addresses, err := dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	global, network := map[int]bool{}, map[int]bool{}
	for _, a := range addresses {
		ones, bits := a.Mask.Size()
		global[a.LinkIndex] = global[a.LinkIndex] || a.IP.IsGlobalUnicast()
		network[a.LinkIndex] = network[a.LinkIndex] || a.IP.IsGlobalUnicast() && ones < bits
	}
	routers := map[int]bool{0: true}
	for _, link := range links {
		routers[link.Attrs().Index] = link.Type() == "vrf"
	}
	var names []string
	for _, link := range links {
		at := link.Attrs()
		forwards := at.EncapType == "ether" && at.Flags&net.FlagLoopback == 0 && link.Type() != "vrf"
		// In some clouds the only interface of a machine also has an address without a network.
		addressed := network[at.Index] || global[at.Index] && link.Type() != "veth"
		if forwards && addressed && routers[at.MasterIndex] {
			names = append(names, at.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
