package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var families = []int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// isGone reports whether an object does not exist any more.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) ||
		strings.Contains(err.Error(), "No such file or directory") // of nft
}

// isMissing reports whether the kernel does not have a subsystem.
func isMissing(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// sets returns the sets of ipset, with their entries.
func sets() (Footprint, error) {
	all, err := netlink.IpsetListAll()
	if err != nil {
		if isMissing(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	var out Footprint
	for _, s := range all {
		out = append(out, Piece{Kind: IPSet, Text: fmt.Sprintf("%s %s with %d entries", s.SetName, s.TypeName, len(s.Entries)),
			remove: func() error { return netlink.IpsetDestroy(s.SetName) }})
	}
	return out, nil
}

// trackedFlows returns the entries of connection tracking that a dataplane may have made: those of VIPs, those that are rewritten, and those with a mark.
func trackedFlows() (Footprint, error) {
	var out Footprint
	for _, family := range families {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(family))
		if err != nil {
			if isMissing(err) {
				return nil, nil
			}
			return nil, fmt.Errorf("list connection tracking: %w", err)
		}
		for _, f := range flows {
			rewritten := !f.Forward.SrcIP.Equal(f.Reverse.DstIP) || !f.Forward.DstIP.Equal(f.Reverse.SrcIP)
			if rewritten || f.Mark != 0 || isVIP(f.Forward.DstIP) || isVIP(f.Forward.SrcIP) {
				out = append(out, Piece{Kind: Tracked, Text: fmt.Sprintf("protocol %d %s:%d > %s:%d, answers %s:%d > %s:%d, mark %#x", f.Forward.Protocol,
					f.Forward.SrcIP, f.Forward.SrcPort, f.Forward.DstIP, f.Forward.DstPort, f.Reverse.SrcIP, f.Reverse.SrcPort, f.Reverse.DstIP, f.Reverse.DstPort, f.Mark)})
			}
		}
	}
	return out, nil
}

func isVIP(ip net.IP) bool {
	a, _ := netip.AddrFromSlice(ip)
	return slices.ContainsFunc(vipNetworks[:], func(n string) bool { return netip.MustParsePrefix(n).Contains(a.Unmap()) })
}

// sysctls returns the network settings of the kernel.
func sysctls() (Footprint, error) {
	const root = "/proc/sys/net"
	var out Footprint
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Base(path) == "nf_conntrack_count" {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // of an interface that has gone
			}
			return err
		}
		value, err := os.ReadFile(path)
		if err != nil {
			return nil // only to be written, or without a value yet
		}
		out = append(out, Piece{Kind: Sysctl, Text: strings.TrimPrefix(path, root+"/") + " = " + strings.Join(strings.Fields(string(value)), " ")})
		return nil
	})
	return out, err
}

// rules returns the rules that select routing tables.
func rules() (Footprint, error) {
	var out Footprint
	for _, family := range families {
		all, err := netlink.RuleList(family)
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, r := range all {
			r.Family = family
			out = append(out, Piece{Kind: Rule, Text: fmt.Sprintf("family %d %s mark %#x in %q out %q goto %d type %d invert %v", family, r.String(), r.Mark, r.IifName, r.OifName, r.Goto, r.Type, r.Invert),
				remove: func() error { return netlink.RuleDel(&r) }})
		}
	}
	return out, nil
}

// routes returns the routes of all tables.
func routes() (Footprint, error) {
	var out Footprint
	for _, family := range families {
		all, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range all {
			p := Piece{Kind: Route, Text: fmt.Sprintf("family %d to %v via %v source %v interface %d table %d type %d metric %d protocol %d %v", family, r.Dst, r.Gw, r.Src, r.LinkIndex, r.Table, r.Type, r.Priority, r.Protocol, r.MultiPath)}
			if r.Protocol != unix.RTPROT_KERNEL { // otherwise it is there because of an address
				p.remove = func() error { return netlink.RouteDel(&r) }
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// neighbours returns the neighbours that a program has set, and the addresses for which the host answers.
func neighbours() (Footprint, error) {
	var out Footprint
	for _, family := range families {
		known, err := netlink.NeighList(0, family)
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		proxied, err := netlink.NeighProxyList(0, family)
		if err != nil {
			return nil, fmt.Errorf("list proxied neighbours: %w", err)
		}
		for _, n := range append(known, proxied...) {
			proxy := n.Flags&netlink.NTF_PROXY != 0
			if proxy || n.State&netlink.NUD_PERMANENT != 0 {
				out = append(out, Piece{Kind: Neighbour, Text: fmt.Sprintf("%s at %s interface %d proxy %v", n.IP, n.HardwareAddr, n.LinkIndex, proxy),
					remove: func() error { return netlink.NeighDel(&n) }})
			}
		}
	}
	return out, nil
}

// interfaces returns the interfaces with all that is attached to them.
func interfaces() (Footprint, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out Footprint
	for _, link := range links {
		a := link.Attrs()
		const flags = unix.IFF_UP | unix.IFF_PROMISC | unix.IFF_ALLMULTI | unix.IFF_NOARP
		out = append(out, Piece{Kind: Interface, Text: fmt.Sprintf("%s %s mac %s mtu %d flags %#x promiscuous %d master %d alias %q", a.Name, link.Type(), a.HardwareAddr, a.MTU, a.RawFlags&flags, a.Promisc, a.MasterIndex, a.Alias),
			remove: func() error { return netlink.LinkDel(link) }})
		if a.Xdp != nil && a.Xdp.Attached {
			out = append(out, Piece{Kind: XDP, Text: fmt.Sprintf("program on %s", a.Name)})
		}
		for _, read := range []func(netlink.Link) (Footprint, error){addressesOf, schedulersOf, programsOf} {
			found, err := read(link)
			if err != nil {
				return nil, fmt.Errorf("interface %s: %w", a.Name, err)
			}
			out = append(out, found...)
		}
	}
	return out, nil
}

func addressesOf(link netlink.Link) (Footprint, error) {
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out Footprint
	for _, a := range addresses {
		out = append(out, Piece{Kind: Address, Text: fmt.Sprintf("%s on %s", a.IPNet, link.Attrs().Name), remove: func() error { return netlink.AddrDel(link, &a) }})
	}
	return out, nil
}

// schedulersOf returns the queueing disciplines of an interface, and their filters.
func schedulersOf(link netlink.Link) (Footprint, error) {
	qdiscs, err := netlink.QdiscList(link)
	if err != nil {
		return nil, fmt.Errorf("list queueing disciplines: %w", err)
	}
	var out Footprint
	for _, q := range qdiscs {
		p := Piece{Kind: Qdisc, Text: fmt.Sprintf("%s on %s", q.Type(), link.Attrs().Name)}
		if q.Attrs().Handle != 0 { // otherwise it is the kernel's
			p.remove = func() error { return netlink.QdiscDel(q) }
		}
		out = append(out, p)
		parents := []uint32{q.Attrs().Handle}
		if q.Type() == "clsact" || q.Type() == "ingress" {
			parents = []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS}
		}
		for _, parent := range parents {
			filters, err := netlink.FilterList(link, parent)
			if err != nil && !isMissing(err) {
				return nil, fmt.Errorf("list filters: %w", err)
			}
			for _, f := range filters {
				a := f.Attrs()
				name := ""
				if b, ok := f.(*netlink.BpfFilter); ok {
					name = b.Name
				}
				out = append(out, Piece{Kind: Filter, Text: fmt.Sprintf("%s %s on %s parent %#x priority %d protocol %#x", f.Type(), name, link.Attrs().Name, a.Parent, a.Priority, a.Protocol),
					remove: func() error { return netlink.FilterDel(f) }})
			}
		}
	}
	return out, nil
}
