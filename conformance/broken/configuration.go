package broken

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// inConfiguration returns faults in preflights and configuration, and in what a backend has to take or to leave to others whatever its
// features are.
func inConfiguration() []Mutation {
	ignore := func(c *dataplane.Config) { c.Options = nil }
	ignored := func(c *dataplane.Config) error {
		c.Options = nil
		return nil
	}
	return []Mutation{
		{Name: "preflight-fails", CaughtBy: []string{"preflight"}, preflight: func(*dataplane.Config) error { return errors.New("netlink: interrupted") }},
		{Name: "preflight-changes-rules", CaughtBy: []string{"preflight"}, preflight: func(*dataplane.Config) error { return nft("add table inet fault") }},
		{Name: "preflight-keeps-its-files", CaughtBy: []string{"preflight"}, preflight: func(c *dataplane.Config) error {
			return errors.Join(os.MkdirAll(c.StateDir, 0o700), os.WriteFile(filepath.Join(c.StateDir, "checks"), nil, 0o600))
		}},
		{Name: "preflight-empties-the-dataplane", CaughtBy: []string{"preflight"}, preflight: func(*dataplane.Config) error { return nft("flush ruleset") }},
		{Name: "preflight-misses-what-is-there", CaughtBy: []string{"preflight"}, checks: func(checks *[]dataplane.Check) {
			*checks = append(*checks, dataplane.Check{Group: dataplane.GroupModules, Subject: "module nft_ct", State: dataplane.CheckMissing, Found: "not loaded", Command: "modprobe nft_ct"})
		}},
		{Name: "preflight-without-subjects", CaughtBy: []string{"preflight"}, checks: eachCheck(func(c *dataplane.Check) { c.Subject = "" })},
		{Name: "preflight-without-findings", CaughtBy: []string{"preflight"}, checks: eachCheck(func(c *dataplane.Check) { c.Found = "" })},
		{Name: "preflight-with-groups-of-its-own", CaughtBy: []string{"preflight"}, checks: eachCheck(func(c *dataplane.Check) { c.Group = "Netfilter" })},
		{Name: "preflight-without-a-fix", CaughtBy: []string{"preflight"}, checks: func(checks *[]dataplane.Check) {
			*checks = append(*checks, dataplane.Check{Group: dataplane.GroupModules, Subject: "module nft_ct", State: dataplane.CheckMissing, Found: "not loaded", Costs: "limits"})
		}},
		{Name: "ignores-unknown-options", CaughtBy: []string{"unknown-option"}, configure: ignore, preflight: ignored},
		{Name: "preflight-ignores-options", CaughtBy: []string{"unknown-option"}, preflight: ignored},
		{Name: "configuration-ignores-options", CaughtBy: []string{"unknown-option"}, configure: ignore},
		{Name: "one-state-directory-for-all", CaughtBy: []string{"unknown-option"}, configure: firstStateDir()},
		{Name: "refuses-weights", CaughtBy: []string{"any-pool"}, change: pools(func(_ *memory, p *model.Pool) {
			if slices.ContainsFunc(p.Endpoints, func(e model.Endpoint) bool { return e.Weight != 1 }) {
				p.Tenant = ""
			}
		})},
		{Name: "all-endpoints-draining-are-none", CaughtBy: []string{"any-pool"}, change: pools(func(_ *memory, p *model.Pool) {
			if !slices.ContainsFunc(p.Endpoints, func(e model.Endpoint) bool { return e.State != model.Draining }) {
				p.Endpoints = nil
			}
		})},
		{Name: "prefers-draining-to-unhealthy", CaughtBy: []string{"any-pool"}, change: pools(func(_ *memory, p *model.Pool) {
			if !slices.ContainsFunc(p.Endpoints, func(e model.Endpoint) bool { return e.State == model.Active }) {
				p.Endpoints = slices.DeleteFunc(p.Endpoints, func(e model.Endpoint) bool {
					return e.State == model.Unhealthy && slices.ContainsFunc(p.Endpoints, func(o model.Endpoint) bool { return o.State == model.Draining })
				})
			}
		})},
		{Name: "ends-connections-of-unhealthy-endpoints", CaughtBy: []string{"unhealthy"}, change: noteUnhealthy, applied: endFlows},
		{Name: "puts-addresses-on-loopback", CaughtBy: []string{"announces-nothing"}, change: func(*memory, *dataplane.Change) {}, applied: addVIPs},
		{Name: "answers-neighbour-solicitations", CaughtBy: []string{"announces-nothing"}, change: func(*memory, *dataplane.Change) {}, applied: proxyNeighbours},
		{Name: "purge-ends-connections-at-once", CaughtBy: []string{"switching"}, purged: func() error { return forgetFlows(nil) }},
	}
}

// noteUnhealthy stores the unhealthy endpoints as if they had left.
func noteUnhealthy(m *memory, c *dataplane.Change) {
	m.left = nil
	for _, p := range c.UpsertPools {
		for _, e := range p.Endpoints {
			if e.State == model.Unhealthy {
				m.left = append(m.left, e.Address)
			}
		}
	}
}

func eachCheck(edit func(*dataplane.Check)) func(*[]dataplane.Check) {
	return func(checks *[]dataplane.Check) {
		for i := range *checks {
			edit(&(*checks)[i])
		}
	}
}

// firstStateDir makes all processes use the directory of the first one, as a backend with a fixed path does. The case removes the directory, so the
// mutation is for one run of one case.
func firstStateDir() func(*dataplane.Config) {
	var once sync.Once
	var first string
	return func(c *dataplane.Config) {
		once.Do(func() { first = c.StateDir })
		c.StateDir = first
	}
}

// addVIPs makes all VIPs addresses of the host.
func addVIPs(m *memory) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for key := range m.frontends {
		err = errors.Join(err, netlink.AddrReplace(lo, &netlink.Addr{IPNet: hostNet(key.VIP)}))
	}
	return err
}

// proxyNeighbours makes the host answer neighbour solicitations for all VIPs.
func proxyNeighbours(m *memory) error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/front/proxy_ndp", []byte("1"), 0o644); err != nil {
		return err
	}
	front, err := netlink.LinkByName("front")
	if err != nil {
		return err
	}
	for key := range m.frontends {
		if key.VIP.Is6() {
			err = errors.Join(err, netlink.NeighSet(&netlink.Neigh{LinkIndex: front.Attrs().Index, Family: unix.AF_INET6, Flags: netlink.NTF_PROXY, IP: key.VIP.AsSlice()}))
		}
	}
	return err
}

func hostNet(address netip.Addr) *net.IPNet {
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}
}
