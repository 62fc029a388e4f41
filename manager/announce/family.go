package announce

import (
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/uplink"
)

// minMTU is the smallest MTU in bytes with which a link carries IPv6 (RFC 8200 section 5).
const minMTU = 1280

// familyProblem is why an interface does not carry a family: what was found, and the command or the advice that mends it. The zero value means that it does.
type familyProblem struct{ found, command, advice string }

// String returns the problem as one line.
func (l familyProblem) String() string {
	switch {
	case l.command != "":
		return l.found + "; run: " + l.command
	case l.advice != "":
		return l.found + ": " + l.advice
	}
	return l.found
}

// unsupportedFamily returns why an interface does not carry a family, empty if it does.
func unsupportedFamily(name string, is uplink.State, f ipam.Family) (string, error) {
	if is.Index == 0 {
		return "", nil // SilentReason reports a missing interface itself
	}
	l, err := familyProblemOf(name, is, f)
	return l.String(), err
}

// familyProblemOf returns why an existing interface does not carry a family. An interface without an address receives packets to a VIP, but to send answers, the
// kernel has to resolve next hops on it.
func familyProblemOf(name string, is uplink.State, f ipam.Family) (familyProblem, error) {
	if f == ipam.IPv4 {
		return unsupportedIPv4(name, is.Index)
	}
	return unsupportedIPv6(name, is)
}

// unsupportedIPv6 returns why an interface does not carry IPv6. For an answer from a VIP, which is no address of the interface, Linux sends neighbour
// solicitations from the interface's link-local address (RFC 4861 section 4.3 allows any of its addresses). Answers to clients also need a route
// other than that of link-local addresses: while IPv6 is disabled, Linux removes other addresses and routes, and does not restore them.
// If answers leave by another interface, neither is needed.
func unsupportedIPv6(name string, is uplink.State) (familyProblem, error) {
	switch {
	case ipv6Disabled(name) && is.MTU < minMTU:
		return familyProblem{found: fmt.Sprintf("the MTU of interface %s is %d bytes, and IPv6 needs %d", name, is.MTU, minMTU), command: fmt.Sprintf("ip link set %s mtu %d", name, minMTU)}, nil
	case ipv6Disabled(name):
		return familyProblem{found: fmt.Sprintf("IPv6 is turned off on interface %s", name), command: preflight.SetSysctl(disableIPv6Sysctl(name), "0")}, nil
	}
	addresses, err := addressesOf(is.Index, netlink.FAMILY_V6)
	if err != nil {
		return familyProblem{}, err
	}
	routes, err := egressOf(is.Index, netlink.FAMILY_V6)
	if err != nil || routes.byOthers() {
		return familyProblem{}, err
	}
	linkLocal := slices.DeleteFunc(addresses, func(a netlink.Addr) bool { return !a.IP.IsLinkLocalUnicast() })
	usable := slices.ContainsFunc(linkLocal, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_DADFAILED == 0 })
	switch {
	case len(linkLocal) == 0:
		return familyProblem{found: fmt.Sprintf("interface %s has no link-local IPv6 address, which neighbour solicitations need", name), advice: fmt.Sprintf("add one (ip -6 address add fe80::…/64 dev %s)", name)}, nil
	case !usable:
		return familyProblem{found: fmt.Sprintf("another host has the link-local IPv6 address %s of interface %s", linkLocal[0].IP, name), advice: "change one of the two addresses"}, nil
	case !routes.any:
		return familyProblem{found: fmt.Sprintf("no IPv6 route to clients leads out of interface %s", name), advice: fmt.Sprintf("add an address of the clients' network (ip -6 address add …/64 dev %s), or a route", name)}, nil
	}
	return familyProblem{}, nil
}

// unsupportedIPv4 returns why an interface does not carry IPv4. An interface without an address carries IPv4 if it has a route, or if answers leave by
// another interface and rp_filter is 0: with 1 and 2 the kernel drops packets that arrive at an interface without an address (ip-sysctl.rst).
func unsupportedIPv4(name string, index int) (familyProblem, error) {
	addresses, err := addressesOf(index, netlink.FAMILY_V4)
	if err != nil {
		return familyProblem{}, err
	}
	routes, err := egressOf(index, netlink.FAMILY_V4)
	switch {
	case err != nil || routes.any:
		return familyProblem{}, err
	case routes.byOthers() && (len(addresses) > 0 || !filtersReversePath(name)):
		return familyProblem{}, nil
	case len(addresses) > 0:
		return familyProblem{found: fmt.Sprintf("no IPv4 route to clients leads out of interface %s", name), advice: fmt.Sprintf("add one (ip route add … dev %s)", name)}, nil
	}
	return familyProblem{found: fmt.Sprintf("interface %s has no IPv4 address, and no IPv4 route leads out of it", name), advice: fmt.Sprintf("add an address of the clients' network (ip address add …/24 dev %s)", name)}, nil
}

// egress describes the routes of a family that lead out of an interface: any is a route to other than link-local addresses, isDefault a default route.
// otherDefault: a default route leads out of another interface.
type egress struct{ any, isDefault, otherDefault bool }

// byOthers reports whether answers to clients leave by other interfaces.
func (e egress) byOthers() bool { return e.otherDefault && !e.isDefault }

func egressOf(index, family int) (e egress, err error) {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	err = dumps.Each(func() error {
		e = egress{}
		return netlink.RouteListFilteredIter(family, all, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			e.add(r, index)
			return !e.any || !e.isDefault
		})
	})
	if err != nil {
		return egress{}, fmt.Errorf("list routes: %w", err)
	}
	return e, nil
}

// add adds a route.
func (e *egress) add(r netlink.Route, index int) {
	if r.Type != unix.RTN_UNICAST || isLinkLocal(r) {
		return
	}
	here := r.LinkIndex == index || slices.ContainsFunc(r.MultiPath, func(hop *netlink.NexthopInfo) bool { return hop.LinkIndex == index })
	e.any = e.any || here
	if isDefault(r) {
		e.isDefault, e.otherDefault = e.isDefault || here, e.otherDefault || !here
	}
}

// isLinkLocal reports whether a route leads to IPv6 link-local addresses. A client of a VIP has no such address, since it is only valid on one link.
func isLinkLocal(r netlink.Route) bool {
	return r.Dst != nil && r.Dst.IP.To4() == nil && r.Dst.IP.IsLinkLocalUnicast()
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	bits, _ := r.Dst.Mask.Size()
	return bits == 0
}

// filtersReversePath reports whether rp_filter is on. The larger of the interface's setting and the setting "all" counts (ip-sysctl.rst).
func filtersReversePath(name string) bool {
	return slices.ContainsFunc([]string{name, "all"}, func(of string) bool {
		value, err := preflight.Host{}.SysctlValue("net/ipv4/conf/" + of + "/rp_filter")
		return err == nil && value != "0"
	})
}

func addressesOf(index, family int) ([]netlink.Addr, error) {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	addresses, err := dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addresses, nil
}

// ipv6Disabled reports whether an interface has no IPv6 (disable_ipv6 in ip-sysctl.rst). The setting does not exist if the kernel has no IPv6, or if the
// MTU of the interface is too small.
func ipv6Disabled(name string) bool {
	value, err := preflight.Host{}.SysctlValue(disableIPv6Sysctl(name))
	return err != nil || value == "1"
}

func disableIPv6Sysctl(name string) string { return "net/ipv6/conf/" + name + "/disable_ipv6" }

// recheckFamilies calls checkFamilies if routes, addresses or interfaces may have changed since. A change of only a sysctl is noticed within a minute.
func (l *Layer2) recheckFamilies() {
	from := time.Now()
	if !l.routes.Due(from) {
		return
	}
	l.checkFamilies()
	l.routes.MarkRead(from)
}

// checkFamilies finds the families that the links carry, and calls options.Changed after a change. After an error the former result stays.
func (l *Layer2) checkFamilies() {
	l.mu.Lock()
	states := map[*link]uplink.State{}
	for _, k := range l.links {
		states[k] = k.state
	}
	l.mu.Unlock()
	changed := false
	for k, is := range states {
		changed = l.checkFamiliesOf(k, is) || changed
	}
	if changed {
		l.options.Changed()
	}
}

// checkFamiliesOf reports whether the families of a link have changed. It asks the kernel without the lock, since that may take long.
func (l *Layer2) checkFamiliesOf(k *link, is uplink.State) (changed bool) {
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		reason, err := l.options.unsupportedFamily(k.name, is, f)
		if err != nil {
			l.options.Log.Debug("cannot check whether an interface carries a family", "interface", k.name, "family", f.String(), "error", err)
			continue
		}
		l.mu.Lock()
		differs := k.unsupported[f] != reason
		k.unsupported[f] = reason
		l.mu.Unlock()
		if differs {
			l.options.Log.Info("an interface has begun or ceased to carry a family", "interface", k.name, "family", f.String(), "unsupported", reason)
		}
		changed = changed || differs
	}
	return changed
}
