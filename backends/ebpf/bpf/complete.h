// SPDX-License-Identifier: MIT OR GPL-2.0-only
// What the tc program does with a packet: all that there is to do.
#pragma once

#include "answers.h"
#include "errors.h"
#include "others.h"
#include "rewrite.h"
#include "ways.h"

#define PACKET_HOST 0 // linux/if_packet.h

// takes tells whether the frame is for this host. One with a VLAN tag comes again at the interface of its VLAN.
static __always_inline int takes(context *ctx, const struct packet *p, int parsed)
{
	return ctx->pkt_type == PACKET_HOST && !ctx->vlan_present;
}

// is_whole tells whether the frame holds the packet.
static __always_inline int is_whole(context *ctx, const struct packet *p) { return p->network + p->length <= ctx->len; }

// HEADERS is how much of a packet is looked at, at most but for IPv6 with extension headers.
#define HEADERS 134

// read reads the packet. Its headers may lie in several pieces, and those of a packet that an ICMP error is about mostly do.
static __always_inline int read(context *ctx, struct packet *p)
{
	int parsed = parse(ctx, p);

	if ((parsed == READ && p->tuple.protocol != IPPROTO_ICMP && p->tuple.protocol != IPPROTO_ICMPV6) || at(ctx, 0, HEADERS))
		return parsed;
	if (bpf_skb_pull_data(ctx, ctx->len < HEADERS ? ctx->len : HEADERS))
		return parsed;
	__builtin_memset(p, 0, sizeof(*p));
	return parse(ctx, p);
}

// no_way answers, or drops, a packet that find_way has found none for.
static __always_inline int no_way(context *ctx, const struct scratch *s)
{
	if (s->asked == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return too_big(ctx, &s->packet, s->fib.mtu_result);
	return dropped(DROP_NO_ROUTE);
}

// send hands the packet to the neighbour on its way.
static __always_inline int send(const struct way *w)
{
	struct bpf_redir_neigh next = {.nh_family = w->family};

	if (w->family == FAMILY_IPV4)
		next.ipv4_nh = w->next[0];
	else
		__builtin_memcpy(next.ipv6_nh, w->next, 16);
	return bpf_redirect_neigh(w->out, &next, sizeof(next), 0);
}

// leave sends the packet where its flow leads.
static __always_inline int leave(context *ctx, struct scratch *s)
{
	const struct flow *f = &s->flow;
	__u32 packets = ctx->gso_segs ?: 1, bytes = ctx->len - s->packet.network;
	struct way *w;

	if (f->forwarding != DIRECT && s->packet.ttl <= 1)
		return out_of_time(ctx, &s->packet);
	w = find_way(ctx, s, &f->source, f->forwarding == DIRECT ? &s->endpoint : &f->destination);
	if (!w)
		return no_way(ctx, s);
	if (f->forwarding == DIRECT && !w->neighbour)
		return dropped(DROP_NO_ROUTE);
	if (f->forwarding != DIRECT && rewrite(ctx, &s->packet, f) != READ)
		return dropped(DROP_MALFORMED);
	count_packet(f, packets, bytes);
	return send(w);
}

// set_ttl writes the packet's TTL.
static __always_inline int set_ttl(context *ctx, const struct packet *p, __u8 ttl)
{
	if (p->tuple.family == IPV4) {
		struct iphdr *ip = at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return BROKEN;
		// The TTL is the high byte of its word.
		ip->check = updated(updated(ip->check, (__u16)~bpf_htons(ip->ttl << 8)), bpf_htons(ttl << 8));
		ip->ttl = ttl;
	} else {
		struct ipv6hdr *ip = at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return BROKEN;
		ip->hop_limit = ttl;
	}
	return READ;
}

// hand_over sends a packet of a connection that is not known here, as it is but for its TTL, to the next gateway that may know it, unless
// so many have been asked. The TTL says how many: it is 255 less their number.
static __noinline int hand_over(context *ctx, struct scratch *s, __u32 service)
{
	struct handover *to = bpf_map_lookup_elem(&handovers, &service);
	__u8 asked = s->packet.ttl >= UNTOUCHED_TTL - MAX_ASKS ? UNTOUCHED_TTL - s->packet.ttl : 0;
	struct way *w;

	if (!to || asked >= to->asks)
		return refuse(ctx, &s->packet);
	s->endpoint = to->next;
	w = find_way(ctx, s, &s->packet.tuple.source, &s->endpoint);
	if (!w)
		return no_way(ctx, s);
	if (!w->neighbour)
		return dropped(DROP_NO_ROUTE);
	if (set_ttl(ctx, &s->packet, UNTOUCHED_TTL - asked - 1) != READ)
		return dropped(DROP_MALFORMED);
	return send(w);
}

// pass_error brings an ICMP error about a packet of a flow to who sent it.
static __noinline int pass_error(context *ctx, struct scratch *s, int otherwise)
{
	struct packet *p = &s->packet;
	struct flow *f;
	struct way *w;

	if (p->fragment != WHOLE || read_quoted(ctx, p, &s->twin_key) != READ)
		return otherwise;
	f = bpf_map_lookup_elem(&flows, &s->twin_key);
	if (!f)
		f = bpf_map_lookup_elem(&young_flows, &s->twin_key);
	if (!f || !valid(f, 1, &s->endpoint))
		return otherwise;
	s->flow = *f;
	if (p->ttl <= 1)
		return dropped(DROP_TTL);
	w = find_way(ctx, s, &s->flow.source, f->forwarding == DIRECT ? &s->endpoint : &s->flow.destination);
	if (!w)
		return no_way(ctx, s);
	if (s->flow.forwarding == DIRECT ? !w->neighbour : rewrite_error(ctx, p, &s->flow) != READ)
		return dropped(DROP_MALFORMED);
	return send(w);
}

// handle_icmp is for errors about flows, and for what asks a VIP itself.
static __always_inline int handle_icmp(context *ctx, struct scratch *s, __u32 to)
{
	if (is_error(&s->packet))
		return pass_error(ctx, s, to & ROLE_VIP ? DROP : PASS);
	return to & ROLE_VIP ? answer_icmp(ctx, &s->packet) : PASS;
}

// share_ports gives later fragments the ports of the first; it fails if that has not been seen.
static __always_inline int share_ports(struct packet *p)
{
	struct fragment_key key = {.source = p->tuple.source, .destination = p->tuple.destination, .id = p->fragment_id, .protocol = p->tuple.protocol, .family = p->tuple.family};
	__u32 *ports = (__u32 *)&p->tuple.source_port, *found;

	if (p->fragment == FIRST)
		return !bpf_map_update_elem(&fragments, &key, ports, BPF_ANY);
	found = bpf_map_lookup_elem(&fragments, &key);
	if (found)
		*ports = *found;
	return !!found;
}
