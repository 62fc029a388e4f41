// Package nftables is the dataplane in the Linux kernel's NAT, programmed over netlink.
//
// The ruleset is fixed: a table for each family with a handful of rules and chains that no Service adds to. All that
// changes is data in named maps (layout.go). A new flow meets, in prerouting,
//
//	admit:      is it for a VIP, is there an endpoint, may this source connect?  Else reset or unreachable.
//	prerouting: VIP, protocol, port -> pool -> row (a hash of the flow, modulo the pool's size class) -> endpoint -> DNAT
//	scrub:      the marks that the look-ups used are cleared before any other rule sees them
//
// and is masqueraded in postrouting, unless its frontend is transparent. What is rewritten of a packet for a direct frontend is
// put back on its way out (direct.go). Packets of known flows follow conntrack and meet one rule, or, where the kernel has
// flowtables, take the fast path and meet none (flowtable.go).
//
// The kernel is the only memory: digests and names stand in comments of map elements, so a new process takes over what it
// finds (adopt.go) and changes only what differs (state.go). The tables stay when the process ends, and also when no
// frontend is left: conntrack's NAT works only while a NAT chain exists. Purging removes them.
package nftables
