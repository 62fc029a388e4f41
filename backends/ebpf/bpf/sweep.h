// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The sweep: flows that have ended, or been quiet for too long, are forgotten. The plugin runs it every few seconds.
#pragma once

#include "flows.h"

// How long, in seconds, a flow may be quiet. Those of TCP are kube-proxy's and netfilter's (nf_conntrack_tcp_timeout_*), and so are
// those of UDP.
enum {
	ESTABLISHED = 86400,
	HALF_CLOSED = 3600,
	RESET = 120,
	UNANSWERED = 60,
	CLOSED = 30,
	DATAGRAMS = 120,
	DATAGRAM = 30,
};

// Connections that have been idle for longer than their frontend allows. The plugin tells both ends.
struct ended {
	struct tuple client;
	struct tuple answers;
};

// An array, and how many of its elements are of the last sweep: older kernels (6.1) let no program of this kind use a queue.
MAP(BPF_MAP_TYPE_ARRAY, __u32, struct ended, 1 << 12, 0) ended SEC(".maps");
MAP(BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0) ended_count SEC(".maps");

// sweep is what the plugin asks for, and is told.
struct sweep {
	__u32 stamp; // what endpoints of flows that stay are marked with
	__u32 stay, removed; // flows
	__u32 now; // see now()
};

// unproven tells whether there may be no client: anybody can have sent what has come from it.
static __always_inline int unproven(__u8 protocol, const struct flow *f, int young)
{
	return young && protocol == IPPROTO_TCP && f->forwarding != DIRECT && !(f->state & STATE_PROVEN);
}

static __always_inline __u32 lifetime(__u8 protocol, const struct flow *f, int young, __u32 idle)
{
	if (protocol == IPPROTO_UDP)
		return idle ?: f->state & STATE_REPLIED || f->forwarding == DIRECT ? DATAGRAMS : DATAGRAM;
	if ((f->state & STATE_OVER) == STATE_OVER)
		return CLOSED;
	if (unproven(protocol, f, young))
		return idle && f->state & STATE_REPLIED && idle < UNANSWERED ? idle : UNANSWERED;
	if (f->state & STATE_RESET || (f->forwarding == DIRECT && f->state & STATE_CLOSED))
		return RESET;
	if (f->state & STATE_OVER)
		return HALF_CLOSED;
	return idle ?: ESTABLISHED;
}

// is_idle tells whether so many units of now() are surely more than the seconds.
static __always_inline int is_idle(__u32 units, __u32 seconds) { return units && (__u64)(units - 1) << 30 >= (__u64)seconds * 1000000000; }

// tell notes a connection that its frontend's limit ends; it fails when there is no room.
static __always_inline int tell(const struct tuple *key, const struct tuple *twin_key, const struct flow *f, __u32 idle)
{
	__u32 *count = bpf_map_lookup_elem(&ended_count, &(__u32){0});
	struct ended e;

	if (!idle || key->protocol != IPPROTO_TCP || f->state & (STATE_OVER | STATE_RESET) || f->forwarding == DIRECT || !(f->state & STATE_REPLIED))
		return 0;
	e.client = *key;
	e.answers = *twin_key;
	if (!count || bpf_map_update_elem(&ended, count, &e, BPF_ANY))
		return 1;
	++*count;
	return 0;
}

// quiet_for tells how long nothing has come. What came during the sweep is later than it.
static __always_inline __u32 quiet_for(const struct flow *f, __u32 time) { return (__s32)(time - f->seen) > 0 ? time - f->seen : 0; }

static __always_inline int stays(const struct tuple *key, const struct tuple *twin_key, const struct flow *f, const struct flow *twin, int young, __u32 time)
{
	int maybe_nobody = unproven(key->protocol, f, young);
	struct service *service = bpf_map_lookup_elem(&services, &f->service);
	__u32 quiet = quiet_for(f, time);
	struct addr address;

	if (!service || !valid(f, key->protocol == IPPROTO_TCP, &address))
		return 0;
	if (f->state & STATE_REPLY)
		return twin || quiet < LATE;
	// What an endpoint repeats to a client that may not exist does not keep the flow.
	if (twin && !maybe_nobody && quiet_for(twin, time) < quiet)
		quiet = quiet_for(twin, time);
	if (!is_idle(quiet, lifetime(key->protocol, f, young, service->idle)))
		return 1;
	return !maybe_nobody && tell(key, twin_key, f, service->idle);
}

// counts tells whether a flow that stays is one to clients. Connections that have ended are kept for a while, and those that no client has
// proven, or that the client has reset, are none once nothing comes from it any more.
static __always_inline int counts(const struct tuple *key, const struct flow *f, int young, __u32 time)
{
	if (is_over(f) || (f->forwarding == DIRECT && f->state & STATE_CLOSED))
		return 0;
	return quiet_for(f, time) < LATE || !(f->state & STATE_RESET || unproven(key->protocol, f, young));
}

// meet counts a flow that stays for its service's limit.
static __always_inline void meet(const struct tuple *key, const struct flow *f, int young, __u32 stamp, __u32 time)
{
	struct service *service = bpf_map_lookup_elem(&services, &f->service);
	struct limit *l;

	if (!service || !(service->checks & LIMITED))
		return;
	l = bpf_map_lookup_elem(&limits, &f->service);
	if (!l)
		return;
	if (l->stamp != stamp) {
		l->stamp = stamp;
		l->met = 0;
	}
	if (counts(key, f, young, time))
		l->met++;
}

static long settle_limit(void *map, const __u32 *number, struct limit *l, struct sweep *s)
{
	l->flows = l->stamp == s->stamp ? l->met : 0;
	return 0;
}

static __always_inline long sweep_entry(const struct tuple *key, struct flow *f, struct sweep *s, int young)
{
	struct tuple twin_key;
	struct flow *twin;
	struct endpoint *endpoint;

	// What is kept for good needs no other entry.
	if (young && bpf_map_lookup_elem(&flows, key)) {
		bpf_map_delete_elem(&young_flows, key);
		return 0;
	}
	turn_key(key, f, &twin_key);
	twin = young ? bpf_map_lookup_elem(&young_flows, &twin_key) : bpf_map_lookup_elem(&flows, &twin_key);
	if (!stays(key, &twin_key, f, twin, young, s->now)) {
		s->removed++;
		forget(key, &twin_key);
		return 0;
	}
	if (f->state & STATE_REPLY)
		return 0;
	s->stay++;
	meet(key, f, young, s->stamp, s->now);
	endpoint = bpf_map_lookup_elem(&endpoints, &f->endpoint);
	if (endpoint)
		endpoint->used = s->stamp;
	return 0;
}

static long sweep_flow(void *map, const struct tuple *key, struct flow *f, struct sweep *s) { return sweep_entry(key, f, s, 0); }
static long sweep_young(void *map, const struct tuple *key, struct flow *f, struct sweep *s) { return sweep_entry(key, f, s, 1); }

SEC("syscall")
int sweep(struct sweep *args)
{
	// Programs of this kind have no coarse clock.
	struct sweep s = {.stamp = args->stamp, .now = bpf_ktime_get_ns() >> 30};

	bpf_map_update_elem(&ended_count, &(__u32){0}, &(__u32){0}, BPF_ANY);
	bpf_for_each_map_elem(&flows, sweep_flow, &s, 0);
	bpf_for_each_map_elem(&young_flows, sweep_young, &s, 0);
	bpf_for_each_map_elem(&limits, settle_limit, &s, 0);
	args->stay = s.stay;
	args->removed = s.removed;
	return 0;
}
