// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The slow path: the parts of balance.h that are special to the tc program, which handles all packets.
#pragma once

#include "answers.h"
#include "errors.h"
#include "host_state.h"
#include "rewrite.h"
#include "routes.h"

#define PACKET_HOST 0 // linux/if_packet.h

// can_handle tells whether the frame is for this host. A frame with a VLAN tag comes again at the interface of its VLAN.
static __always_inline int can_handle(context *ctx, const struct packet *p, int parsed)
{
	return ctx->pkt_type == PACKET_HOST && !ctx->vlan_present;
}

// frame_holds_packet tells whether the frame is at least as long as the packet.
static __always_inline int frame_holds_packet(context *ctx, const struct packet *p) { return p->network + p->length <= ctx->len; }

// The headers that the program reads are not longer than MAX_HEADERS, except with IPv6 extension headers.
#define MAX_HEADERS 134

// read_packet parses the packet. Its headers may lie in several buffers, which is usual for an ICMP error. The kernel then copies them into one.
static __always_inline int read_packet(context *ctx, struct packet *p)
{
	int parsed = parse(ctx, p);

	if ((parsed == OK && p->tuple.protocol != IPPROTO_ICMP && p->tuple.protocol != IPPROTO_ICMPV6) || bytes_at(ctx, 0, MAX_HEADERS))
		return parsed;
	if (bpf_skb_pull_data(ctx, ctx->len < MAX_HEADERS ? ctx->len : MAX_HEADERS))
		return parsed;
	__builtin_memset(p, 0, sizeof(*p));
	return parse(ctx, p);
}

// no_route drops a packet for which find_route has found no route, and tells its sender if it is too big.
static __always_inline int no_route(context *ctx, const struct scratch *s)
{
	if (s->lookup == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return report_too_big(ctx, &s->packet, s->fib.mtu_result);
	return dropped(DROP_NO_ROUTE);
}

// send sends the packet to the next hop of the route.
static __always_inline int send(const struct route *r)
{
	struct bpf_redir_neigh next = {.nh_family = r->family};

	if (r->family == FAMILY_IPV4)
		next.ipv4_nh = r->next[0];
	else
		__builtin_memcpy(next.ipv6_nh, r->next, 16);
	return bpf_redirect_neigh(r->out, &next, sizeof(next), 0);
}

// forward sends the packet to the next hop of its flow.
static __always_inline int forward(context *ctx, struct scratch *s)
{
	const struct flow *f = &s->flow;
	__u32 packets = ctx->gso_segs ?: 1, bytes = s->packet.length; // the frame may be longer: Ethernet pads it
	struct route *r;

	if (f->forwarding != DIRECT && s->packet.ttl <= 1)
		return report_ttl_exceeded(ctx, &s->packet);
	r = find_route(ctx, s, &f->source, f->forwarding == DIRECT ? &s->endpoint : &f->destination);
	if (!r)
		return no_route(ctx, s);
	if (f->forwarding == DIRECT && !r->on_link)
		return dropped(DROP_NO_ROUTE);
	if (f->forwarding != DIRECT && rewrite(ctx, &s->packet, f) != OK)
		return dropped(DROP_MALFORMED);
	count_packet(f, packets, bytes);
	return send(r);
}

// redirect_packet sends a packet of an unknown connection to the next gateway that may know it, unless the packet has been redirected often enough. Only the TTL
// changes: it is INITIAL_TTL less the number of redirects.
static __noinline int redirect_packet(context *ctx, struct scratch *s, __u32 service)
{
	struct redirect *redirect = bpf_map_lookup_elem(&handovers, &service);
	__u8 redirects = s->packet.ttl >= INITIAL_TTL - MAX_REDIRECTS ? INITIAL_TTL - s->packet.ttl : 0;
	struct route *r;

	if (!redirect || redirects >= redirect->max_redirects)
		return refuse(ctx, &s->packet);
	s->endpoint = redirect->next;
	r = find_route(ctx, s, &s->packet.tuple.source, &s->endpoint);
	if (!r)
		return no_route(ctx, s);
	if (!r->on_link)
		return dropped(DROP_NO_ROUTE);
	if (set_ttl(ctx, &s->packet, INITIAL_TTL - redirects - 1) != OK)
		return dropped(DROP_MALFORMED);
	return send(r);
}

// forward_error forwards an ICMP error about a packet of a flow to the sender of that packet. It returns unknown if the error is about no known flow.
static __noinline int forward_error(context *ctx, struct scratch *s, int unknown)
{
	struct packet *p = &s->packet;
	struct flow *f;
	struct route *r;

	if (p->fragment != WHOLE || parse_quoted(ctx, p, &s->reverse_key) != OK)
		return unknown;
	f = bpf_map_lookup_elem(&flows, &s->reverse_key);
	if (!f)
		f = bpf_map_lookup_elem(&young_flows, &s->reverse_key);
	if (!f || !is_valid(f, 1, &s->endpoint))
		return unknown;
	s->flow = *f;
	if (p->ttl <= 1)
		return dropped(DROP_TTL);
	r = find_route(ctx, s, &s->flow.source, f->forwarding == DIRECT ? &s->endpoint : &s->flow.destination);
	if (!r)
		return no_route(ctx, s);
	if (s->flow.forwarding == DIRECT ? !r->on_link : rewrite_error(ctx, p, &s->flow) != OK)
		return dropped(DROP_MALFORMED);
	return send(r);
}

// set_fragment_ports sets the ports of a later fragment to the ports of the first one. It fails if the first one has not been seen.
static __always_inline int set_fragment_ports(struct packet *p)
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

// handle_icmp handles errors about flows, and messages to a VIP itself.
static __always_inline int handle_icmp(context *ctx, struct scratch *s, __u32 roles)
{
	struct packet *p = &s->packet;

	if (is_error(p))
		return forward_error(ctx, s, roles & ROLE_VIP ? DROP : PASS);
	if (!(roles & ROLE_VIP))
		return PASS;
	// Each fragment of an echo request is answered by itself. The later ones follow the first, which shows what the message is.
	if (p->fragment == FIRST && !is_echo_request(p))
		return dropped(DROP_NO_FLOW);
	if (p->fragment != WHOLE && !set_fragment_ports(p))
		return dropped(DROP_FRAGMENT);
	return answer_icmp(ctx, p);
}
