// SPDX-License-Identifier: MIT OR GPL-2.0-only
// A cache of the kernel's routes. Each processor has its own, and an entry is valid for one tick, see tick(). A lookup in the kernel
// costs more than everything else that the programs do for a packet.
#pragma once

#include "flows.h"

struct route_key {
	struct addr from, to;
	__u32 in;
	__u8 protocol, family;
	__u16 zero;
};

struct route {
	struct route_key key;
	__u32 tick; // the entry is valid in this tick
	__u32 out;  // index of the interface
	__u16 mtu;  // 0: unknown
	__u8 on_link; // the destination is on the segment of out, with no router between
	__u8 family; // of the next hop: AF_INET or AF_INET6
#ifdef LB_XDP
	__u8 dmac[ETH_ALEN], smac[ETH_ALEN];
#else
	__u32 next[4];
#endif
};

#define ROUTES (1 << 10)

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct route, ROUTES, 0) routes SEC(".maps");

#ifdef LB_XDP
// The XDP program needs the MAC address of the next hop. A packet has the length of its header.
enum { LOOKUP_FLAGS = 0 };
static __always_inline __u32 size_of(context *ctx, const struct packet *p) { return p->length; }
#else
// The kernel resolves the MAC address of the next hop when the packet is sent. Before that it splits a packet that it has merged (GRO), so the length of
// that one does not count.
enum { LOOKUP_FLAGS = BPF_FIB_LOOKUP_SKIP_NEIGH, EINVAL = 22 };
static __always_inline __u32 size_of(context *ctx, const struct packet *p) { return ctx->gso_size ? 0 : p->length; }
#endif

static __always_inline int is_same_route(const struct route_key *a, const struct route_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

// is_next_hop tells whether the kernel's next hop is the address itself, and not a router.
static __always_inline int is_next_hop(const struct bpf_fib_lookup *fib, const struct addr *address)
{
	if (fib->family == FAMILY_IPV4)
		return fib->ipv4_dst == address->word[3];
	return fib->ipv6_dst[0] == address->word[0] && fib->ipv6_dst[1] == address->word[1] && fib->ipv6_dst[2] == address->word[2] && fib->ipv6_dst[3] == address->word[3];
}

// lookup_route asks the kernel for the route from one address to another.
static __always_inline long lookup_route(context *ctx, struct scratch *s, const struct addr *from, const struct addr *to)
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
	answer = bpf_fib_lookup(ctx, fib, sizeof(*fib), LOOKUP_FLAGS);
#ifndef LB_XDP
	// Linux before 6.3 does not know the flag BPF_FIB_LOOKUP_SKIP_NEIGH and returns EINVAL. Without the flag the kernel looks up the MAC address of the
	// next hop as well, and fills in the rest even if it does not know that one.
	if (answer == -EINVAL)
		answer = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	if (answer == BPF_FIB_LKUP_RET_NO_NEIGH)
		answer = BPF_FIB_LKUP_RET_SUCCESS;
#endif
	return answer;
}

// find_route returns the route from one address to another. If there is none for the packet it returns NULL, and s->lookup and s->fib are the kernel's answer.
static __always_inline struct route *find_route(context *ctx, struct scratch *s, const struct addr *from, const struct addr *to)
{
	struct route_key key = {.from = *from, .to = *to, .in = ctx->ingress_ifindex, .protocol = s->packet.tuple.protocol, .family = s->packet.tuple.family};
	__u32 hash = (from->word[3] ^ from->word[2]) * 0x9e3779b1 ^ (to->word[3] ^ to->word[2]) * 0x85ebca6b;
	struct route *r = bpf_map_lookup_elem(&routes, &(__u32){hash * 0xc2b2ae35 >> 22});

	s->lookup = BPF_FIB_LKUP_RET_BLACKHOLE;
	if (!r)
		return NULL;
	if (r->tick == tick(s) && is_same_route(&r->key, &key) && size_of(ctx, &s->packet) <= r->mtu)
		return r;
	r->key = key;
	r->tick = 0;
	s->lookup = lookup_route(ctx, s, from, to);
	if (s->lookup != BPF_FIB_LKUP_RET_SUCCESS)
		return NULL;
	r->tick = tick(s);
	r->out = s->fib.ifindex;
	r->mtu = s->fib.mtu_result;
	r->on_link = is_next_hop(&s->fib, to);
	r->family = s->fib.family;
#ifdef LB_XDP
	__builtin_memcpy(r->dmac, s->fib.dmac, ETH_ALEN);
	__builtin_memcpy(r->smac, s->fib.smac, ETH_ALEN);
#else
	__builtin_memcpy(r->next, s->fib.ipv6_dst, sizeof(r->next));
#endif
	return r;
}
