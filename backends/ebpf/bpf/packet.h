// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Parsing of packets, and updates of checksums after a rewrite (RFC 1624).
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "model.h"

#ifdef LB_XDP
typedef struct xdp_md context;
#else
typedef struct __sk_buff context;
#endif

enum fragment { WHOLE, FIRST, LATER };

struct packet {
	struct tuple tuple;
	__u32 network, transport; // offsets
	__u32 quoted_ports;       // the offset of the ports in the packet that an ICMP error quotes
	__u32 length;             // of the IP packet
	__u8 fragment;
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type, icmp_code;
	__u8 tcp_header; // its length
	__u32 fragment_id;
	__be32 sequence, acknowledged;
};

enum tcp_flag { FIN = 0x01, SYN = 0x02, RST = 0x04, ACK = 0x10 };

// The verifier needs a bound for offsets.
#define MAX_OFFSET 511

// bytes_at returns a pointer to size bytes of the packet, or NULL if the packet is too short.
static __always_inline void *bytes_at(context *ctx, __u32 offset, __u32 size)
{
	void *data, *end;
	__u64 from = offset;

	// The assembly keeps the compiler from two things that verifiers of older kernels refuse. One is to add something to the context pointer.
	// The other is to compare one register with the bound of an offset, and to add a copy of that register.
	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(data) : "r"(ctx), "i"(offsetof(context, data)));
	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(end) : "r"(ctx), "i"(offsetof(context, data_end)));
	asm volatile("" : "+r"(from));
	if (from > MAX_OFFSET)
		return NULL;
	data += from;
	if (data + size > end)
		return NULL;
	return data;
}

enum result { NOT_IP = 0, OK = 1, MALFORMED = 2 };

static __always_inline int parse_ports(context *ctx, struct packet *p)
{
	__be16 *ports;

	switch (p->tuple.protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = bytes_at(ctx, p->transport, sizeof(*tcp));

		if (!tcp || tcp->doff < 5 || (p->fragment == WHOLE && p->transport + tcp->doff * 4 > p->network + p->length))
			return MALFORMED;
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->tcp_header = tcp->doff * 4;
		p->sequence = tcp->seq;
		p->acknowledged = tcp->ack_seq;
		break;
	}
	case IPPROTO_UDP: {
		struct udphdr *udp = bytes_at(ctx, p->transport, sizeof(*udp));

		if (!udp || bpf_ntohs(udp->len) < sizeof(*udp) || (p->fragment == WHOLE && p->transport + bpf_ntohs(udp->len) > p->network + p->length))
			return MALFORMED;
		break;
	}
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		__u8 *icmp = bytes_at(ctx, p->transport, 8);

		if (!icmp)
			return MALFORMED;
		p->icmp_type = icmp[0];
		p->icmp_code = icmp[1];
		return OK;
	}
	default:
		return OK;
	}
	// Even a first fragment has to hold the ports, by its bytes and by the length in its header.
	ports = bytes_at(ctx, p->transport, 4);
	if (!ports || p->transport + 8 > p->network + p->length)
		return MALFORMED;
	p->tuple.source_port = ports[0];
	p->tuple.destination_port = ports[1];
	return OK;
}

// packet_length returns the length of the IP packet. If the kernel has merged several packets into one (GRO), the length may not fit into the header (BIG TCP).
static __always_inline __u32 packet_length(context *ctx, const struct packet *p, __u32 in_header)
{
#ifndef LB_XDP
	if (ctx->gso_size)
		return ctx->len - p->network;
#endif
	return in_header;
}

static __always_inline int parse_ipv4(context *ctx, struct packet *p)
{
	struct iphdr *ip = bytes_at(ctx, p->network, sizeof(*ip));
	__u16 fragment;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return MALFORMED;
	p->tuple.family = IPV4;
	p->tuple.protocol = ip->protocol;
	p->tuple.source.word[3] = ip->saddr;
	p->tuple.destination.word[3] = ip->daddr;
	p->transport = p->network + ip->ihl * 4;
	p->length = packet_length(ctx, p, bpf_ntohs(ip->tot_len));
	if (p->length < ip->ihl * 4)
		return MALFORMED;
	p->ttl = ip->ttl;
	fragment = bpf_ntohs(ip->frag_off);
	p->fragment = fragment & 0x1fff ? LATER : fragment & 0x2000 ? FIRST : WHOLE;
	p->fragment_id = ip->id;
	return OK;
}

static __always_inline int parse_ipv6(context *ctx, struct packet *p)
{
	struct ipv6hdr *ip = bytes_at(ctx, p->network, sizeof(*ip));
	__u8 next;

	if (!ip || ip->version != 6)
		return MALFORMED;
	p->tuple.family = IPV6;
	__builtin_memcpy(&p->tuple.source, &ip->saddr, 16);
	__builtin_memcpy(&p->tuple.destination, &ip->daddr, 16);
	p->length = packet_length(ctx, p, bpf_ntohs(ip->payload_len) + sizeof(*ip));
	p->ttl = ip->hop_limit;
	p->transport = p->network + sizeof(*ip);
	next = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < 6; i++) {
		__u8 *extension;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		extension = bytes_at(ctx, p->transport, 8);
		if (!extension)
			return MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			__u16 offset = bpf_ntohs(*(__be16 *)(extension + 2));

			p->fragment = offset & 0xfff8 ? LATER : offset & 1 ? FIRST : WHOLE;
			p->fragment_id = *(__u32 *)(extension + 4);
			next = extension[0];
			p->transport += 8;
			if (p->fragment == LATER)
				break;
			continue;
		}
		next = extension[0];
		p->transport += (extension[1] + 1) * 8;
		if (p->transport > MAX_OFFSET)
			return MALFORMED;
	}
	p->tuple.protocol = next;
	// The headers may be longer than the packet's length field.
	return p->transport > p->network + p->length ? MALFORMED : OK;
}

// parse parses a packet up to its ports. It returns NOT_IP for a frame with a VLAN tag as well: the frame comes again, without the tag, at the interface of
// the VLAN.
static __always_inline int parse(context *ctx, struct packet *p)
{
	struct ethhdr *eth = bytes_at(ctx, 0, sizeof(*eth));
	__be16 ethertype;
	int result;

	if (!eth)
		return NOT_IP;
	ethertype = eth->h_proto;
	p->network = sizeof(*eth);
	if (ethertype == bpf_htons(ETH_P_IP))
		result = parse_ipv4(ctx, p);
	else if (ethertype == bpf_htons(ETH_P_IPV6))
		result = parse_ipv6(ctx, p);
	else
		return NOT_IP;
	if (result != OK || p->fragment == LATER)
		return result;
	return parse_ports(ctx, p);
}

static __always_inline __u32 add_carry(__u32 sum, __u32 value)
{
	sum += value;
	return sum < value ? sum + 1 : sum;
}

// fold_sum turns a sum of 32-bit words into a sum of 16-bit words.
static __always_inline __u16 fold_sum(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u32 add_addr(__u32 sum, const struct addr *a)
{
	sum = add_carry(sum, a->word[0]);
	sum = add_carry(sum, a->word[1]);
	sum = add_carry(sum, a->word[2]);
	return add_carry(sum, a->word[3]);
}

static __always_inline __u32 subtract_addr(__u32 sum, const struct addr *a)
{
	sum = add_carry(sum, ~a->word[0]);
	sum = add_carry(sum, ~a->word[1]);
	sum = add_carry(sum, ~a->word[2]);
	return add_carry(sum, ~a->word[3]);
}

// update_checksum returns the checksum after difference has been added to the data.
static __always_inline __sum16 update_checksum(__sum16 checksum, __u32 difference)
{
	return ~fold_sum(add_carry(fold_sum(difference), (__u16)~checksum));
}
