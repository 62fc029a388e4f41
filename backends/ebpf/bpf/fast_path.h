// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The fast path: the parts of balance.h that are special to the XDP program. It handles TCP and UDP packets that are not fragments, and whose route
// the kernel knows with the MAC address of the next hop. It passes all other packets untouched to the tc program.
#pragma once

#include "rewrite.h"
#include "routes.h"

// A flow that was quiet for MAX_QUIET, in units of now(), takes the slow path with its next packet. There the kernel checks that the next hop still answers.
#define MAX_QUIET 4

// frame_holds_packet tells whether the first buffer of the frame holds the complete packet.
static __always_inline int frame_holds_packet(context *ctx, const struct packet *p) { return p->network + p->length <= ctx->data_end - ctx->data; }

// can_handle tells whether the packet is for this host, and can take the fast path.
static __always_inline int can_handle(context *ctx, const struct packet *p, int parsed)
{
	struct interface *in = bpf_map_lookup_elem(&interfaces, &(__u32){ctx->ingress_ifindex});
	struct ethhdr *eth = bytes_at(ctx, 0, sizeof(*eth));

	if (parsed != OK || p->fragment != WHOLE || (p->tuple.protocol != IPPROTO_TCP && p->tuple.protocol != IPPROTO_UDP))
		return 0;
	if (!in || !in->has_xdp || !eth || *(__u32 *)eth->h_dest != *(__u32 *)in->mac || *(__u16 *)(eth->h_dest + 4) != *(__u16 *)(in->mac + 4))
		return 0;
	return frame_holds_packet(ctx, p);
}

static __always_inline int read_packet(context *ctx, struct packet *p) { return parse(ctx, p); }
static __always_inline int refuse(context *ctx, const struct packet *p) { return PASS; }
static __always_inline int report_ttl_exceeded(context *ctx, const struct packet *p) { return PASS; }
static __always_inline int is_error(const struct packet *p) { return 0; }
static __always_inline int handle_icmp(context *ctx, struct scratch *s, __u32 to) { return PASS; }
static __always_inline int redirect_packet(context *ctx, struct scratch *s, __u32 service) { return PASS; }
static __always_inline int set_fragment_ports(struct packet *p) { return 0; }

// belongs_to_host returns 1 where only the tc program can find it out.
static __always_inline int belongs_to_host(context *ctx, struct packet *p) { return p->tuple.protocol == IPPROTO_TCP && !begins_connection(p); }

static __always_inline int is_rewritten_by_host(context *ctx, struct packet *p) { return 1; }

// forward sends the packet to the next hop of its flow.
static __always_inline int forward(context *ctx, struct scratch *s)
{
	const struct flow *f = &s->flow;
	struct interface *out;
	struct ethhdr *eth;
	struct route *r;

	if (s->packet.ttl <= 1 || s->quiet >= MAX_QUIET)
		return PASS;
	r = find_route(ctx, s, &f->source, f->forwarding == DIRECT ? &s->endpoint : &f->destination);
	if (!r || (f->forwarding == DIRECT && !r->on_link))
		return PASS;
	out = bpf_map_lookup_elem(&interfaces, &r->out);
	if (!out || !out->accepts_frames)
		return PASS;
	if (f->forwarding != DIRECT && rewrite(ctx, &s->packet, f) != OK)
		return dropped(DROP_MALFORMED);
	eth = bytes_at(ctx, 0, sizeof(*eth));
	if (!eth)
		return dropped(DROP_MALFORMED);
	__builtin_memcpy(eth->h_dest, r->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, r->smac, ETH_ALEN);
	count_packet(f, 1, s->packet.length);
	// Not XDP_TX, even if this is the interface where the packet came in: the kernel does not wake the other end of a veth pair after XDP_TX (veth_xdp_flush).
	return bpf_redirect(r->out, 0);
}
