// SPDX-License-Identifier: MIT OR GPL-2.0-only
// What the XDP program does with a packet, if it is easy: it is whole, of TCP or UDP, and its way is known down to the neighbour's
// MAC. It passes all others untouched, and the tc program sees to them.
#pragma once

#include "rewrite.h"
#include "ways.h"

// QUIET is after how long, in units of now(), a flow's next packet is left to the kernel's way of sending, which makes sure that the
// neighbour is still there.
#define QUIET 4

// is_whole tells whether all of the packet lies in one piece.
static __always_inline int is_whole(context *ctx, const struct packet *p) { return p->network + p->length <= ctx->data_end - ctx->data; }

// takes tells whether the packet is easy, and for this host.
static __always_inline int takes(context *ctx, const struct packet *p, int parsed)
{
	struct interface *in = bpf_map_lookup_elem(&interfaces, &(__u32){ctx->ingress_ifindex});
	struct ethhdr *eth = at(ctx, 0, sizeof(*eth));

	if (parsed != READ || p->fragment != WHOLE || (p->tuple.protocol != IPPROTO_TCP && p->tuple.protocol != IPPROTO_UDP))
		return 0;
	if (!in || !in->runs || !eth || *(__u32 *)eth->h_dest != *(__u32 *)in->mac || *(__u16 *)(eth->h_dest + 4) != *(__u16 *)(in->mac + 4))
		return 0;
	return is_whole(ctx, p);
}

static __always_inline int read(context *ctx, struct packet *p) { return parse(ctx, p); }
static __always_inline int refuse(context *ctx, const struct packet *p) { return PASS; }
static __always_inline int out_of_time(context *ctx, const struct packet *p) { return PASS; }
static __always_inline int handle_icmp(context *ctx, struct scratch *s, __u32 to) { return PASS; }
static __always_inline int hand_over(context *ctx, struct scratch *s, __u32 service) { return PASS; }
static __always_inline int share_ports(struct packet *p) { return 0; }

// goes_on_elsewhere: whether it does is for the tc program to find out.
static __always_inline int goes_on_elsewhere(context *ctx, struct packet *p) { return p->tuple.protocol == IPPROTO_TCP && !opens(p); }

static __always_inline int begun_elsewhere(context *ctx, struct packet *p) { return 1; }

// leave sends the packet where its flow leads.
static __always_inline int leave(context *ctx, struct scratch *s)
{
	const struct flow *f = &s->flow;
	struct interface *out;
	struct ethhdr *eth;
	struct way *w;

	if (s->packet.ttl <= 1 || s->quiet >= QUIET)
		return PASS;
	w = find_way(ctx, s, &f->source, f->forwarding == DIRECT ? &s->endpoint : &f->destination);
	if (!w || (f->forwarding == DIRECT && !w->neighbour))
		return PASS;
	out = bpf_map_lookup_elem(&interfaces, &w->out);
	if (!out || !out->transmits)
		return PASS;
	if (f->forwarding != DIRECT && rewrite(ctx, &s->packet, f) != READ)
		return dropped(DROP_MALFORMED);
	eth = at(ctx, 0, sizeof(*eth));
	if (!eth)
		return dropped(DROP_MALFORMED);
	__builtin_memcpy(eth->h_dest, w->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, w->smac, ETH_ALEN);
	count_packet(f, 1, s->packet.length);
	// Even where it came from: the kernel does not wake the other end of a veth pair after XDP_TX (veth_xdp_flush).
	return bpf_redirect(w->out, 0);
}
