// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Rewriting packets of flows.
#pragma once

#include "flows.h"

// rewrite writes the flow's addresses and ports into the packet, and counts its TTL down.
static __always_inline int rewrite(context *ctx, const struct packet *p, const struct flow *f)
{
	__u32 difference = subtract_addr(subtract_addr(add_addr(add_addr(0, &f->source), &f->destination), &p->tuple.source), &p->tuple.destination);
	__u32 old_ports, new_ports;
	__u32 checksum_offset;

	if (p->tuple.family == IPV4) {
		struct iphdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		ip->saddr = f->source.word[3];
		ip->daddr = f->destination.word[3];
		ip->ttl--;
		// The TTL is the high byte of a 16-bit word.
		ip->check = update_checksum(ip->check, add_carry(difference, (__u16)~bpf_htons(0x0100)));
	} else {
		struct ipv6hdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		__builtin_memcpy(&ip->saddr, &f->source, 16);
		__builtin_memcpy(&ip->daddr, &f->destination, 16);
		ip->hop_limit--;
	}
	if (p->fragment == LATER)
		return OK;
	{
		__be16 *ports = bytes_at(ctx, p->transport, 4);

		if (!ports)
			return MALFORMED;
		old_ports = *(__u32 *)ports;
		ports[0] = f->source_port;
		ports[1] = f->destination_port;
		new_ports = *(__u32 *)ports;
	}
	checksum_offset = p->transport + (p->tuple.protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
#ifdef LB_XDP
	{
		__sum16 *checksum = bytes_at(ctx, checksum_offset, 2);

		if (!checksum)
			return MALFORMED;
		// A datagram without a checksum stays without (RFC 768).
		if (p->tuple.protocol == IPPROTO_UDP && !*checksum)
			return OK;
		*checksum = update_checksum(*checksum, add_carry(add_carry(difference, new_ports), ~old_ports));
		if (p->tuple.protocol == IPPROTO_UDP && !*checksum)
			*checksum = 0xffff;
	}
#else
	{
		__u64 flags = p->tuple.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

		// The checksum may cover the addresses only, if the kernel leaves the rest to the device.
		bpf_l4_csum_replace(ctx, checksum_offset, 0, difference, flags | BPF_F_PSEUDO_HDR);
		bpf_l4_csum_replace(ctx, checksum_offset, old_ports, new_ports, flags | 4);
	}
#endif
	return OK;
}
