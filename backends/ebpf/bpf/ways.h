// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Ways: what the kernel has said of the route between two addresses. Each processor remembers some for a moment, since asking costs
// more than anything else that is done for a packet.
#pragma once

#include "flows.h"

struct way_key {
	struct addr from, to;
	__u32 in;
	__u8 protocol, family;
	__u16 zero;
};

struct way {
	struct way_key key;
	__u32 moment; // for which it is remembered, see moment()
	__u32 out;
	__u16 mtu; // 0: it was not asked for
	__u8 neighbour; // to is on the next link
	__u8 family; // of the next hop, as sockets say it
#ifdef LB_XDP
	__u8 dmac[ETH_ALEN], smac[ETH_ALEN];
#else
	__u32 next[4];
#endif
};

#define WAYS (1 << 10)

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct way, WAYS, 0) ways SEC(".maps");

#ifdef LB_XDP
// The neighbour has to be known. A packet is as long as it says.
enum { ASK = 0 };
static __always_inline __u32 size_of(context *ctx, const struct packet *p) { return p->length; }
#else
// The neighbour is looked for when the packet is sent. What the kernel has joined is cut up again before that.
enum { ASK = BPF_FIB_LOOKUP_SKIP_NEIGH, EINVAL = 22 };
static __always_inline __u32 size_of(context *ctx, const struct packet *p) { return ctx->gso_size ? 0 : p->length; }
#endif

static __always_inline int is_way(const struct way_key *a, const struct way_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

// leads_to tells whether the kernel's answer is the way to a neighbour itself.
static __always_inline int leads_to(const struct bpf_fib_lookup *fib, const struct addr *neighbour)
{
	if (fib->family == FAMILY_IPV4)
		return fib->ipv4_dst == neighbour->word[3];
	return fib->ipv6_dst[0] == neighbour->word[0] && fib->ipv6_dst[1] == neighbour->word[1] && fib->ipv6_dst[2] == neighbour->word[2] &&
	       fib->ipv6_dst[3] == neighbour->word[3];
}

// ask has the kernel say which way leads from one address to another.
static __always_inline long ask(context *ctx, struct scratch *s, const struct addr *from, const struct addr *to)
{
	struct bpf_fib_lookup *fib = &s->fib;
	long answer;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = ctx->ingress_ifindex;
	fib->l4_protocol = s->packet.tuple.protocol;
	fib->tot_len = size_of(ctx, &s->packet);
	if (s->packet.tuple.family == IPV4) {
		fib->family = FAMILY_IPV4;
		fib->ipv4_src = from->word[3];
		fib->ipv4_dst = to->word[3];
	} else {
		fib->family = FAMILY_IPV6;
		__builtin_memcpy(fib->ipv6_src, from, 16);
		__builtin_memcpy(fib->ipv6_dst, to, 16);
	}
	answer = bpf_fib_lookup(ctx, fib, sizeof(*fib), ASK);
#ifndef LB_XDP
	// Linux before 6.3 does not know the flag and refuses it before anything else. Without it the kernel looks for the neighbour, too, and
	// answers the rest even where it knows none.
	if (answer == -EINVAL)
		answer = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	if (answer == BPF_FIB_LKUP_RET_NO_NEIGH)
		answer = BPF_FIB_LKUP_RET_SUCCESS;
#endif
	return answer;
}

// find_way is the way from one address to another. If there is none for the packet, s->asked and s->fib are the kernel's answer.
static __always_inline struct way *find_way(context *ctx, struct scratch *s, const struct addr *from, const struct addr *to)
{
	struct way_key key = {.from = *from, .to = *to, .in = ctx->ingress_ifindex, .protocol = s->packet.tuple.protocol, .family = s->packet.tuple.family};
	__u32 hash = (from->word[3] ^ from->word[2]) * 0x9e3779b1 ^ (to->word[3] ^ to->word[2]) * 0x85ebca6b;
	struct way *w = bpf_map_lookup_elem(&ways, &(__u32){hash * 0xc2b2ae35 >> 22});

	s->asked = BPF_FIB_LKUP_RET_BLACKHOLE;
	if (!w)
		return NULL;
	if (w->moment == moment(s) && is_way(&w->key, &key) && size_of(ctx, &s->packet) <= w->mtu)
		return w;
	w->key = key;
	w->moment = 0;
	s->asked = ask(ctx, s, from, to);
	if (s->asked != BPF_FIB_LKUP_RET_SUCCESS)
		return NULL;
	w->moment = moment(s);
	w->out = s->fib.ifindex;
	w->mtu = s->fib.mtu_result;
	w->neighbour = leads_to(&s->fib, to);
	w->family = s->fib.family;
#ifdef LB_XDP
	__builtin_memcpy(w->dmac, s->fib.dmac, ETH_ALEN);
	__builtin_memcpy(w->smac, s->fib.smac, ETH_ALEN);
#else
	__builtin_memcpy(w->next, s->fib.ipv6_dst, sizeof(w->next));
#endif
	return w;
}
