// SPDX-License-Identifier: MIT OR GPL-2.0-only
// What becomes of a packet of a flow.
#pragma once

#include "flows.h"

// rewrite turns the packet into what the flow says.
static __always_inline int rewrite(context *ctx, const struct packet *p, const struct flow *f)
{
	__u32 difference = subtract_addr(subtract_addr(add_addr(add_addr(0, &f->source), &f->destination), &p->tuple.source), &p->tuple.destination);
	__u32 old_ports, new_ports;
	__u32 at_checksum;

	if (p->tuple.family == IPV4) {
		struct iphdr *ip = at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return BROKEN;
		ip->saddr = f->source.word[3];
		ip->daddr = f->destination.word[3];
		ip->ttl--;
		// The TTL is the high byte of its word.
		ip->check = updated(ip->check, add_carry(difference, (__u16)~bpf_htons(0x0100)));
	} else {
		struct ipv6hdr *ip = at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return BROKEN;
		__builtin_memcpy(&ip->saddr, &f->source, 16);
		__builtin_memcpy(&ip->daddr, &f->destination, 16);
		ip->hop_limit--;
	}
	if (p->fragment == LATER)
		return READ;
	{
		__be16 *ports = at(ctx, p->transport, 4);

		if (!ports)
			return BROKEN;
		old_ports = *(__u32 *)ports;
		ports[0] = f->source_port;
		ports[1] = f->destination_port;
		new_ports = *(__u32 *)ports;
	}
	at_checksum = p->transport + (p->tuple.protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
#ifdef LB_XDP
	{
		__sum16 *checksum = at(ctx, at_checksum, 2);

		if (!checksum)
			return BROKEN;
		// No checksum stays none (RFC 768).
		if (p->tuple.protocol == IPPROTO_UDP && !*checksum)
			return READ;
		*checksum = updated(*checksum, add_carry(add_carry(difference, new_ports), ~old_ports));
		if (p->tuple.protocol == IPPROTO_UDP && !*checksum)
			*checksum = 0xffff;
	}
#else
	{
		__u64 flags = p->tuple.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

		// The kernel may have left the checksum to the device, with only the addresses in it yet.
		bpf_l4_csum_replace(ctx, at_checksum, 0, difference, flags | BPF_F_PSEUDO_HDR);
		bpf_l4_csum_replace(ctx, at_checksum, old_ports, new_ports, flags | 4);
	}
#endif
	return READ;
}
