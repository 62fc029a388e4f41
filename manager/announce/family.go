package announce

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/uplink"
)

// leastMTU is that of IPv6 (RFC 8200 section 5).
const leastMTU = 1280

// lackOf is why an interface carries no packets of a family to clients and back, empty if it does. Whether packets to a VIP come in depends on no
// address, but for answers the kernel has to find neighbours there.
func lackOf(name string, is uplink.State, f ipam.Family) (string, error) {
	if is.Index == 0 {
		return "", nil // which is said as it is
	}
	if f == ipam.IPv4 {
		return lackOfIPv4(name, is.Index)
	}
	return lackOfIPv6(name, is)
}

// lackOfIPv6: the kernel asks for neighbours from a link-local address alone (RFC 4861 section 4.3 would let it use others).
func lackOfIPv6(name string, is uplink.State) (string, error) {
	switch {
	case disabled(name) && is.MTU < leastMTU:
		return fmt.Sprintf("the MTU of interface %s is %d bytes, and IPv6 needs %d; run: ip link set %s mtu %d", name, is.MTU, leastMTU, name, leastMTU), nil
	case disabled(name):
		return fmt.Sprintf("IPv6 is turned off on interface %s; run: %s", name, preflight.SetSysctl(ipv6Setting(name), "0")), nil
	}
	addresses, err := addressesOf(is.Index, netlink.FAMILY_V6)
	if err != nil {
		return "", err
	}
	linkLocal := slices.DeleteFunc(addresses, func(a netlink.Addr) bool { return !a.IP.IsLinkLocalUnicast() })
	if slices.ContainsFunc(linkLocal, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_DADFAILED == 0 }) {
		return "", nil
	}
	if len(linkLocal) > 0 {
		return fmt.Sprintf("another host has the link-local IPv6 address %s of interface %s: give one of them another one", linkLocal[0].IP, name), nil
	}
	return fmt.Sprintf("interface %s has no link-local IPv6 address, without which it finds no neighbours: add one (ip -6 address add fe80::…/64 dev %s)", name, name), nil
}

// lackOfIPv4: an interface without an address of its own (unnumbered) has routes.
func lackOfIPv4(name string, index int) (string, error) {
	addresses, err := addressesOf(index, netlink.FAMILY_V4)
	if err != nil || len(addresses) > 0 {
		return "", err
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: index, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return "", fmt.Errorf("list IPv4 routes: %w", err)
	}
	if len(routes) > 0 {
		return "", nil
	}
	return fmt.Sprintf("interface %s has no IPv4 address, and no IPv4 route leads out of it: add an address of the clients' network", name), nil
}

func addressesOf(index, family int) ([]netlink.Addr, error) {
	addresses, err := netlink.AddrList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, family)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addresses, nil
}

// disabled tells whether an interface has no IPv6 (ip-sysctl.rst). A kernel without any has no such setting, and neither has an interface whose MTU
// is too small.
func disabled(name string) bool {
	value, err := preflight.Host{}.SysctlValue(ipv6Setting(name))
	return err != nil || value == "1"
}

func ipv6Setting(name string) string { return "net/ipv6/conf/" + name + "/disable_ipv6" }

// lacks are why an interface carries nothing of a family, by family.
type lacks map[ipam.Family]string

// lookAtFamilies finds out which families the links carry now, and tells if that is not as before. Of what cannot be found out nothing changes.
func (l *Layer2) lookAtFamilies() {
	l.mu.Lock()
	states := map[*link]uplink.State{}
	for _, k := range l.links {
		states[k] = k.state
	}
	l.mu.Unlock()
	changed := false
	for k, is := range states {
		changed = l.lookAt(k, is) || changed
	}
	if changed {
		l.options.Changed()
	}
}

// lookAt asks the kernel, which may take a while, and tells whether the link's lacks are others than before.
func (l *Layer2) lookAt(k *link, is uplink.State) (changed bool) {
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		lack, err := l.options.lackOf(k.name, is, f)
		if err != nil {
			l.options.Log.Debug("look what an interface carries", "interface", k.name, "family", f.String(), "error", err)
			continue
		}
		l.mu.Lock()
		differs := k.lacks[f] != lack
		k.lacks[f] = lack
		l.mu.Unlock()
		if differs {
			l.options.Log.Info("what an interface carries is not as before", "interface", k.name, "family", f.String(), "lack", lack)
		}
		changed = changed || differs
	}
	return changed
}
