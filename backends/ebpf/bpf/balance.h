// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The load balancer. It takes packets for VIPs and the answers of endpoints, and leaves all others untouched. It is compiled twice:
// complete, as tc.c, and as xdp.c, which serves only the packets that are easy and leaves all others, untouched, to tc.c.
#pragma once

#include "begin.h"

#ifdef LB_XDP
#include "easy.h"
#else
#include "complete.h"
#endif

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// role is what an address means to the programs.
static __always_inline __u32 role(const struct addr *address, __u8 family)
{
	struct address_key key = {.address = *address, .family = family};
	__u32 *found = bpf_map_lookup_elem(&addresses, &key);

	return found ? *found : 0;
}

// open_new serves a packet for a VIP that belongs to no known flow.
static __always_inline int open_new(context *ctx, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct frontend_key key = {.vip = p->tuple.destination, .port = p->tuple.destination_port, .protocol = p->tuple.protocol, .family = p->tuple.family};
	__u32 *number = bpf_map_lookup_elem(&frontends, &key);
	struct service *service;

	if (!number)
		return refuse(ctx, p);
	service = bpf_map_lookup_elem(&services, number);
	if (!service || !service->generation)
		return refuse(ctx, p);
	if (p->ttl <= 1 && service->forwarding != DIRECT)
		return out_of_time(ctx, p);
	// Only the beginning of a connection can be rewritten so that its peer knows it.
	if (service->forwarding == NAT && p->tuple.protocol == IPPROTO_TCP && !opens(p))
		return hand_over(ctx, s, *number);
	// Nobody outside has an address of this gateway's.
	if (role(&p->tuple.source, p->tuple.family) & (ROLE_VIP | ROLE_SOURCE))
		return dropped(DROP_SOURCE);
	if (service->checks & RESTRICTED) {
		struct range_key range = {.length = 8 * (sizeof(range) - sizeof(range.length)), .service = *number, .source = p->tuple.source};

		if (!bpf_map_lookup_elem(&source_ranges, &range))
			return dropped(DROP_SOURCE_RANGE);
	}
	switch (choose(s, *number, service)) {
	case NO_ENDPOINT:
		return refuse(ctx, p);
	case NO_PORT:
		return dropped(DROP_NO_PORT);
	case TOO_MANY:
		return dropped(DROP_RATE);
	}
	return leave(ctx, s);
}

static __always_inline int handle(context *ctx, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct settings *settings = bpf_map_lookup_elem(&settings_map, &(__u32){0});
	__u32 to;
	int parsed;

	if (!settings)
		return PASS;
	__builtin_memset(p, 0, sizeof(*p));
	parsed = read(ctx, p);
	if (parsed == NOT_OURS || !takes(ctx, p, parsed))
		return PASS;
	to = role(&p->tuple.destination, p->tuple.family);
	if (!to && (!settings->transparent || !(role(&p->tuple.source, p->tuple.family) & ROLE_ENDPOINT)))
		return PASS;
	// Only what is for us is ours to drop.
	if (parsed == BROKEN || !is_whole(ctx, p))
		return to & ROLE_VIP ? dropped(DROP_MALFORMED) : PASS;
	if (settings->closing)
		to &= ~ROLE_VIP;
	s->time = bpf_ktime_get_coarse_ns();
	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6)
		return handle_icmp(ctx, s, to);
	if (p->tuple.protocol != IPPROTO_TCP && p->tuple.protocol != IPPROTO_UDP)
		return to & ROLE_VIP ? dropped(REFUSED) : PASS;
	if (p->fragment != WHOLE && !share_ports(p))
		return to & ROLE_VIP ? dropped(DROP_FRAGMENT) : PASS;
	if (settings->closing && begun_elsewhere(ctx, p))
		return PASS;
	if (known(s))
		return leave(ctx, s);
	if (!(to & ROLE_VIP) || goes_on_elsewhere(ctx, p))
		return PASS;
	if (p->fragment == LATER)
		return dropped(DROP_FRAGMENT);
	return open_new(ctx, s);
}

