// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Parsing and rewriting ICMP errors about packets of flows.
#pragma once

#include "answers.h"

// rewrite_quoted rewrites the packet that an ICMP error quotes back to what its sender sent. It adds the difference to sum, for the ICMP checksum.
static __always_inline int rewrite_quoted(context *ctx, const struct packet *p, const struct flow *f, __u32 *sum)
{
	__u32 quoted = p->transport + ICMP_HEADER, *ports;
	__u32 difference;

	if (p->tuple.family == IPV4) {
		struct iphdr *ip = bytes_at(ctx, quoted, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		difference = add_carry(add_carry(add_carry(add_carry(0, f->destination.word[3]), f->source.word[3]), ~ip->saddr), ~ip->daddr);
		ip->saddr = f->destination.word[3];
		ip->daddr = f->source.word[3];
		ip->check = update_checksum(ip->check, difference);
		// The new checksum of the header makes up for the new addresses: the ICMP checksum does not change by them.
	} else {
		struct ipv6hdr *ip = bytes_at(ctx, quoted, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		*sum = subtract_addr(subtract_addr(add_addr(add_addr(*sum, &f->destination), &f->source), (struct addr *)&ip->saddr), (struct addr *)&ip->daddr);
		__builtin_memcpy(&ip->saddr, &f->destination, 16);
		__builtin_memcpy(&ip->daddr, &f->source, 16);
	}
	ports = bytes_at(ctx, p->quoted_ports, 4);
	if (!ports)
		return MALFORMED;
	*sum = add_carry(*sum, ~*ports);
	*ports = (__u32)f->source_port << 16 | f->destination_port;
	*sum = add_carry(*sum, *ports);
	return OK;
}

// rewrite_error rewrites an ICMP error about a packet of a flow, so that the sender of that packet knows its addresses and ports.
static __always_inline int rewrite_error(context *ctx, struct packet *p, const struct flow *f)
{
	struct addr from = f->forwarding == NAT || f->state & STATE_REPLY ? f->source : p->tuple.source;
	__u32 outer = subtract_addr(subtract_addr(add_addr(add_addr(0, &from), &f->destination), &p->tuple.source), &p->tuple.destination);
	__u32 sum = 0;
	__u16 *icmp;

	if (rewrite_quoted(ctx, p, f, &sum) != OK)
		return MALFORMED;
	if (p->tuple.family == IPV4) {
		struct iphdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		ip->saddr = from.word[3];
		ip->daddr = f->destination.word[3];
		ip->ttl--;
		ip->check = update_checksum(ip->check, add_carry(outer, (__u16)~bpf_htons(0x0100)));
	} else {
		struct ipv6hdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		__builtin_memcpy(&ip->saddr, &from, 16);
		__builtin_memcpy(&ip->daddr, &f->destination, 16);
		ip->hop_limit--;
		sum = add_carry(sum, outer);
	}
	icmp = bytes_at(ctx, p->transport, ICMP_HEADER);
	if (!icmp)
		return MALFORMED;
	icmp[1] = update_checksum(icmp[1], sum);
	return OK;
}

static __always_inline int is_same_address(const struct addr *a, const struct addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

// parse_quoted parses the packet that an ICMP error quotes, and requires that it goes to the sender of that packet. It returns the tuple of the opposite
// direction.
static __always_inline int parse_quoted(context *ctx, struct packet *p, struct tuple *answer)
{
	__u32 quoted = p->transport + ICMP_HEADER;
	__be16 *ports;

	__builtin_memset(answer, 0, sizeof(*answer));
	answer->family = p->tuple.family;
	if (p->tuple.family == IPV4) {
		struct iphdr *ip = bytes_at(ctx, quoted, sizeof(*ip));

		if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(0x1fff))
			return MALFORMED;
		answer->source.word[3] = ip->daddr;
		answer->destination.word[3] = ip->saddr;
		answer->protocol = ip->protocol;
		quoted += ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = bytes_at(ctx, quoted, sizeof(*ip));

		if (!ip || ip->version != 6)
			return MALFORMED;
		__builtin_memcpy(&answer->source, &ip->daddr, 16);
		__builtin_memcpy(&answer->destination, &ip->saddr, 16);
		answer->protocol = ip->nexthdr;
		quoted += sizeof(*ip);
		if (answer->protocol == IPPROTO_FRAGMENT) {
			__u8 *extension = bytes_at(ctx, quoted, 8);

			if (!extension || *(__be16 *)(extension + 2) & bpf_htons(0xfff8))
				return MALFORMED;
			answer->protocol = extension[0];
			quoted += 8;
		}
	}
	if (!is_same_address(&answer->destination, &p->tuple.destination))
		return MALFORMED;
	p->quoted_ports = quoted;
	if (answer->protocol != IPPROTO_TCP && answer->protocol != IPPROTO_UDP)
		return MALFORMED;
	ports = bytes_at(ctx, quoted, 4);
	if (!ports)
		return MALFORMED;
	answer->source_port = ports[1];
	answer->destination_port = ports[0];
	return OK;
}

static __always_inline int is_error(const struct packet *p)
{
	if (p->tuple.protocol == IPPROTO_ICMP)
		return p->icmp_type == UNREACHABLE || p->icmp_type == TIME_EXCEEDED || p->icmp_type == PARAMETER_PROBLEM;
	return p->tuple.protocol == IPPROTO_ICMPV6 && p->icmp_type >= UNREACHABLE6 && p->icmp_type <= PARAMETER_PROBLEM6;
}
