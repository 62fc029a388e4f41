// Package nftables is the dataplane that uses the Linux kernel's NAT. It is programmed over netlink.
//
// The ruleset is fixed: a table for each family with a few rules and chains. A Service adds no rules, only elements of named
// maps (layout.go). In prerouting a new flow passes these chains:
//
//	admit:      is it for a VIP, is there an endpoint, may this source connect? Otherwise it is refused.
//	prerouting: VIP, protocol, port -> pool -> row (a hash of the flow, modulo the pool's size class) -> endpoint -> DNAT
//	scrub:      clears the marks that the lookups used before any other rule sees them
//
// In postrouting it is masqueraded, unless its frontend is transparent. For a direct frontend, all that was rewritten is
// restored there (direct.go). Packets of known flows follow connection tracking and pass one rule. If the kernel has
// flowtables, they take the fast path and pass no rule (flowtable.go).
//
// All state is in the kernel: digests and names are in comments of map elements, so that a new process adopts what it finds
// (adopt.go) and changes only what differs (plan.go). The tables stay when the process ends, and also when there is no
// frontend: the kernel's NAT works only while a NAT chain exists. A purge removes them.
package nftables
