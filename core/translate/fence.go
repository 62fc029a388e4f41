package translate

import (
	"fmt"
	"net/netip"

	"kubelb.k8c.io/core/ipam"
)

// Fence says which addresses no tenant may target, whatever its BackendCIDRs allow: a load balancer that forwards
// anywhere is a way into the hub's network (CVE-2021-25740 and its kin).
type Fence struct {
	// Forbidden are the operator's networks: the hub's nodes, pods, Services and API.
	Forbidden []netip.Prefix
	// Hosts are addresses of hosts of the management cluster, gateways and nodes, and which host it is.
	Hosts map[netip.Addr]string
	// Claims say which addresses are other tenants' nodes; nil for none.
	Claims *Claims
	// VIPs are all addresses that pools may give: a target among them would make a loop or reach another tenant.
	VIPs []ipam.Range
}

// never are networks that no node address can lie in.
var never = []struct {
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

// Check parses a target and reports why the tenant may not have it. The error is put into words when it is asked for: lists are long, and few of what is
// refused are named.
func (f Fence) Check(text string, tenant Tenant) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, refuse("%q is not an IP address", text)
	}
	if address.Zone() != "" || address.Is4In6() {
		return netip.Addr{}, refuse("%s has a zone or is an IPv4-mapped address; write it plainly", text)
	}
	for _, n := range never {
		if n.prefix.Contains(address) {
			return netip.Addr{}, refuse("%s is %s and never a node's", address, n.what)
		}
	}
	for _, forbidden := range f.Forbidden {
		if forbidden.Contains(address) {
			return netip.Addr{}, refuse("%s is in a network of the management cluster that the operator forbids", address)
		}
	}
	if host, is := f.Hosts[address]; is {
		return netip.Addr{}, refuse("%s is an address of %s of the management cluster and never a target", address, host)
	}
	for _, vips := range f.VIPs {
		if vips.Contains(address) {
			return netip.Addr{}, refuse("%s is an external address of an AddressPool and would make a loop", address)
		}
	}
	for _, allowed := range tenant.BackendCIDRs {
		if !allowed.Contains(address) {
			continue
		}
		if _, is := f.Claims.Rival(tenant, address); is {
			// Which one is told to the operator, who can see all Addresses, and not to the tenant.
			return netip.Addr{}, refuse("%s is another tenant's node; if it is this one's, have the operator name it in spec.backendCIDRs of Tenant %s more precisely", address, tenant.Name)
		}
		return address, nil
	}
	return netip.Addr{}, refuse("%s is outside spec.backendCIDRs %v of Tenant %s; have the operator add the nodes' network",
		address, tenant.BackendCIDRs, tenant.Name)
}

// refusal is an error that is not in words yet.
type refusal struct {
	format string
	args   []any
}

func refuse(format string, args ...any) error { return refusal{format, args} }

// Error implements error.
func (r refusal) Error() string { return fmt.Sprintf(r.format, r.args...) }
