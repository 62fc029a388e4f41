// SPDX-License-Identifier: MIT OR GPL-2.0-only
// What the XDP program does with a packet, if it is easy: it is whole, of TCP or UDP, and its way is known down to the neighbour's
// MAC. It passes all others untouched, and the tcx program sees to them.
#pragma once

#include "rewrite.h"

// QUIET is after how long, in units of now(), a flow's next packet is left to the kernel's way of sending, which makes sure that the
// neighbour is still there.
#define QUIET 4

// A way is what the kernel has said of the route between two addresses and of the neighbour on it. Each processor remembers some for
// a moment, since asking costs more than anything else that is done for a packet.
struct way_key {
	struct addr from, to;
	__u32 in;
	__u8 protocol, family;
	__u16 zero;
};

struct way {
	struct way_key key;
	__u32 moment; // see moment()
	__u32 out;
	__u16 mtu;
	__u8 neighbour; // to is on the next link
	__u8 zero;
	__u8 dmac[ETH_ALEN], smac[ETH_ALEN];
};

#define WAYS (1 << 10)

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct way, WAYS, 0) ways SEC(".maps");

// moment is how long a way is remembered: 2^26 ns, 67 ms.
static __always_inline __u32 moment(const struct scratch *s) { return s->time >> 26; }

static __always_inline int is_way(const struct way_key *a, const struct way_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

// ask has the kernel say which way leads from one address to another.
static __always_inline int ask(context *ctx, struct scratch *s, const struct addr *from, const struct addr *to, struct way *w)
{
	struct bpf_fib_lookup *fib = &s->fib;

	ask_fib(ctx, s, from, to);
	fib->tot_len = s->packet.length; // or it would not say the MTU
	if (bpf_fib_lookup(ctx, fib, sizeof(*fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return 0;
	w->moment = moment(s);
	w->out = fib->ifindex;
	w->mtu = fib->mtu_result;
	w->neighbour = leads_to(fib, to);
	__builtin_memcpy(w->dmac, fib->dmac, ETH_ALEN);
	__builtin_memcpy(w->smac, fib->smac, ETH_ALEN);
	return 1;
}

// find_way is the way from one address to another; none if the kernel has to look into it.
static __always_inline struct way *find_way(context *ctx, struct scratch *s, const struct addr *from, const struct addr *to)
{
	struct way_key key = {.from = *from, .to = *to, .in = ctx->ingress_ifindex, .protocol = s->packet.tuple.protocol, .family = s->packet.tuple.family};
	__u32 hash = (from->word[3] ^ from->word[2]) * 0x9e3779b1 ^ (to->word[3] ^ to->word[2]) * 0x85ebca6b;
	struct way *w = bpf_map_lookup_elem(&ways, &(__u32){hash * 0xc2b2ae35 >> 22});

	if (!w)
		return NULL;
	if (w->moment == moment(s) && is_way(&w->key, &key))
		return s->packet.length <= w->mtu ? w : NULL;
	w->key = key;
	w->moment = 0;
	return ask(ctx, s, from, to, w) ? w : NULL;
}

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

static __always_inline int refuse(context *ctx, const struct packet *p) { return PASS; }
static __always_inline int out_of_time(context *ctx, const struct packet *p) { return PASS; }
static __always_inline int handle_icmp(context *ctx, struct scratch *s, __u32 to) { return PASS; }
static __always_inline int share_ports(struct packet *p) { return 0; }

// goes_on_elsewhere: whether it does is for the tcx program to find out.
static __always_inline int goes_on_elsewhere(context *ctx, struct packet *p) { return p->tuple.protocol == IPPROTO_TCP && !opens(p); }

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
