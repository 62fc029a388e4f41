package translate

import (
	"fmt"
	"net/netip"

	"kubelb.k8c.io/core/ipam"
)

// TargetFilter is the filter of targets: it decides which addresses a tenant may target. A load balancer that forwards anywhere
// would be a way into the hub's network (such as CVE-2021-25740).
type TargetFilter struct {
	// Forbidden are the operator's networks: the hub's nodes, pods, Services and API.
	Forbidden []netip.Prefix
	// Hosts are addresses of gateways and nodes of the management cluster, with names for the hosts.
	Hosts map[netip.Addr]string
	// NodeOwners knows the addresses of other tenants' nodes; nil for none.
	NodeOwners *NodeOwners
	// VIPs are all addresses of AddressPools. A target among them would make a loop or reach another tenant.
	VIPs []ipam.Range
}

// specialNetworks are networks in which no node has its address.
var specialNetworks = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified address (RFC 1122)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address (RFC 3927), where clouds serve their metadata"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved or broadcast address"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "the loopback address"},
	{netip.MustParsePrefix("64:ff9b::/96"), "an address that translates to IPv4 (RFC 6052)"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
}

// Check parses a target and returns an error if the tenant may not have it. The error is formatted only when its text is needed: lists are long, and
// messages name few of the refused targets.
func (f TargetFilter) Check(text string, tenant Tenant) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, refusef("%q is not an IP address", text)
	}
	if address.Zone() != "" || address.Is4In6() {
		return netip.Addr{}, refusef("%s has a zone or is an IPv4-mapped address; write it plainly", text)
	}
	for _, n := range specialNetworks {
		if n.prefix.Contains(address) {
			return netip.Addr{}, refusef("%s is %s, which no node has", address, n.what)
		}
	}
	for _, forbidden := range f.Forbidden {
		if forbidden.Contains(address) {
			return netip.Addr{}, refusef("%s is in a network of the management cluster that the operator forbids", address)
		}
	}
	if host, found := f.Hosts[address]; found {
		return netip.Addr{}, refusef("%s is an address of %s of the management cluster, which is never a target", address, host)
	}
	for _, vips := range f.VIPs {
		if vips.Contains(address) {
			return netip.Addr{}, refusef("%s is an external address of an AddressPool and would make a loop", address)
		}
	}
	for _, allowed := range tenant.BackendCIDRs {
		if !allowed.Contains(address) {
			continue
		}
		if _, found := f.NodeOwners.OtherOwner(tenant, address); found {
			// Only the operator may know which tenant: the message is for this tenant.
			return netip.Addr{}, refusef("%s is another tenant's node; if it is this tenant's, have the operator add a longer prefix for it to spec.backendCIDRs of Tenant %s", address, tenant.Name)
		}
		return address, nil
	}
	return netip.Addr{}, refusef("%s is outside spec.backendCIDRs %v of Tenant %s; have the operator add the nodes' network",
		address, tenant.BackendCIDRs, tenant.Name)
}

// refusal is an error that formats its text when it is needed.
type refusal struct {
	format string
	args   []any
}

func refusef(format string, args ...any) error { return refusal{format, args} }

// Error implements error.
func (r refusal) Error() string { return fmt.Sprintf(r.format, r.args...) }
