// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The load balancer. It handles packets for VIPs and the answers of endpoints, and leaves all other packets untouched. It is compiled twice: as tc.c, which
// handles all these packets, and as xdp.c, which handles those of the fast path and leaves the others to tc.c.
#pragma once

#include "new_flows.h"

#ifdef LB_XDP
#include "fast_path.h"
#else
#include "slow_path.h"
#endif

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// roles_of returns the roles of an address, see enum address_role.
static __always_inline __u32 roles_of(const struct addr *address, __u8 family)
{
	struct address_key key = {.address = *address, .family = family};
	__u32 *found = bpf_map_lookup_elem(&addresses, &key);

	return found ? *found : 0;
}

// open_flow handles a packet for a VIP that belongs to no known flow.
static __always_inline int open_flow(context *ctx, struct scratch *s)
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
		return report_ttl_exceeded(ctx, p);
	// An endpoint does not know a connection if the first packet was not rewritten here.
	if (service->forwarding == NAT && p->tuple.protocol == IPPROTO_TCP && !begins_connection(p))
		return redirect_packet(ctx, s, *number);
	// A packet from another host does not have an address of this gateway as its source.
	if (roles_of(&p->tuple.source, p->tuple.family) & (ROLE_VIP | ROLE_SOURCE))
		return dropped(DROP_SOURCE);
	if (service->checks & RESTRICTED) {
		struct range_key range = {.length = 8 * (sizeof(range) - sizeof(range.length)), .service = *number, .source = p->tuple.source};

		if (!bpf_map_lookup_elem(&source_ranges, &range))
			return dropped(DROP_SOURCE_RANGE);
	}
	switch (create_flow(s, *number, service)) {
	case NO_ENDPOINT:
		return refuse(ctx, p);
	case NO_PORT:
		return dropped(DROP_NO_PORT);
	case LIMIT_REACHED:
		return dropped(DROP_RATE);
	}
	return forward(ctx, s);
}

static __always_inline int handle(context *ctx, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct settings *settings = bpf_map_lookup_elem(&settings_map, &(__u32){0});
	__u32 roles;
	int parsed;

	if (!settings)
		return PASS;
	__builtin_memset(p, 0, sizeof(*p));
	parsed = read_packet(ctx, p);
	if (parsed == NOT_IP || !can_handle(ctx, p, parsed))
		return PASS;
	roles = roles_of(&p->tuple.destination, p->tuple.family);
	// Endpoints send answers of transparent flows to clients. So do routers on their way with errors about these flows.
	if (!roles && (!settings->transparent || (!(roles_of(&p->tuple.source, p->tuple.family) & ROLE_ENDPOINT) && !is_error(p))))
		return PASS;
	// A malformed packet for another address is left to the host.
	if (parsed == MALFORMED || !frame_holds_packet(ctx, p))
		return roles & ROLE_VIP ? dropped(DROP_MALFORMED) : PASS;
	if (settings->closing)
		roles &= ~ROLE_VIP;
	s->time = bpf_ktime_get_coarse_ns();
	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6)
		return handle_icmp(ctx, s, roles);
	if (p->tuple.protocol != IPPROTO_TCP && p->tuple.protocol != IPPROTO_UDP)
		return roles & ROLE_VIP ? dropped(REFUSED) : PASS;
	if (p->fragment != WHOLE && !set_fragment_ports(p))
		return roles & ROLE_VIP ? dropped(DROP_FRAGMENT) : PASS;
	if (settings->closing && is_rewritten_by_host(ctx, p))
		return PASS;
	if (find_flow(s))
		return forward(ctx, s);
	if (!(roles & ROLE_VIP) || belongs_to_host(ctx, p))
		return PASS;
	if (p->fragment == LATER)
		return dropped(DROP_FRAGMENT);
	return open_flow(ctx, s);
}

