// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The sweep deletes flows that have ended, or have been quiet for too long. The plugin runs it every few seconds.
#pragma once

#include "flows.h"

// How long a flow may be quiet, in seconds: as with kube-proxy and netfilter (nf_conntrack_tcp_timeout_*, nf_conntrack_udp_timeout*).
enum {
	ESTABLISHED = 86400,
	HALF_CLOSED = 3600,
	RESET = 120,
	UNANSWERED = 60,
	CLOSED = 30,
	DATAGRAMS = 120,
	DATAGRAM = 30,
};

// A connection that was idle for longer than its frontend allows. The plugin tells both ends of it.
struct ended {
	struct tuple client;
	struct tuple answers;
};

// An array, and how many of its elements the last sweep has written. Kernels up to 6.1 do not let a program of type syscall use a queue.
MAP(BPF_MAP_TYPE_ARRAY, __u32, struct ended, 1 << 12, 0) ended SEC(".maps");
MAP(BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0) ended_count SEC(".maps");

// Argument and result of the program sweep.
struct sweep {
	__u32 stamp;         // the number of this sweep. Endpoints with flows are marked with it
	__u32 kept, removed; // numbers of flows
	__u32 now;           // see now()
};

// is_unproven tells whether the client's packets may have a forged source address.
static __always_inline int is_unproven(__u8 protocol, const struct flow *f, int young)
{
	return young && protocol == IPPROTO_TCP && f->forwarding != DIRECT && !(f->state & STATE_PROVEN);
}

static __always_inline __u32 lifetime(__u8 protocol, const struct flow *f, int young, __u32 idle)
{
	if (protocol == IPPROTO_UDP)
		return idle ?: f->state & STATE_REPLIED || f->forwarding == DIRECT ? DATAGRAMS : DATAGRAM;
	if ((f->state & STATE_OVER) == STATE_OVER)
		return CLOSED;
	if (is_unproven(protocol, f, young))
		return idle && f->state & STATE_REPLIED && idle < UNANSWERED ? idle : UNANSWERED;
	if (f->state & STATE_RESET || (f->forwarding == DIRECT && f->state & STATE_CLOSED))
		return RESET;
	if (f->state & STATE_OVER)
		return HALF_CLOSED;
	return idle ?: ESTABLISHED;
}

// is_idle tells whether a number of units of now() is longer than the seconds.
static __always_inline int is_idle(__u32 units, __u32 seconds) { return units && (__u64)(units - 1) << 30 >= (__u64)seconds * 1000000000; }

// record_ended records a connection that ends by the idle timeout of its frontend. It returns 1 if the array is full.
static __always_inline int record_ended(const struct tuple *key, const struct tuple *reverse_key, const struct flow *f, __u32 idle)
{
	__u32 *count = bpf_map_lookup_elem(&ended_count, &(__u32){0});
	struct ended e;

	if (!idle || key->protocol != IPPROTO_TCP || f->state & (STATE_OVER | STATE_RESET) || f->forwarding == DIRECT || !(f->state & STATE_REPLIED))
		return 0;
	e.client = *key;
	e.answers = *reverse_key;
	if (!count || bpf_map_update_elem(&ended, count, &e, BPF_ANY))
		return 1;
	++*count;
	return 0;
}

// quiet_for returns the time since the last packet. A packet that came during the sweep is later than time.
static __always_inline __u32 quiet_for(const struct flow *f, __u32 time) { return (__s32)(time - f->seen) > 0 ? time - f->seen : 0; }

static __always_inline int must_keep(const struct tuple *key, const struct tuple *reverse_key, const struct flow *f, const struct flow *reverse, int young, __u32 time)
{
	int may_be_forged = is_unproven(key->protocol, f, young);
	struct service *service = bpf_map_lookup_elem(&services, &f->service);
	__u32 quiet = quiet_for(f, time);
	struct addr address;

	if (!service || !is_valid(f, key->protocol == IPPROTO_TCP, &address))
		return 0;
	if (f->state & STATE_REPLY)
		return reverse || quiet < MAX_DELAY;
	// Packets to a client that may not exist do not extend the flow.
	if (reverse && !may_be_forged && quiet_for(reverse, time) < quiet)
		quiet = quiet_for(reverse, time);
	if (!is_idle(quiet, lifetime(key->protocol, f, young, service->idle)))
		return 1;
	return !may_be_forged && record_ended(key, reverse_key, f, service->idle);
}

// counts_for_limit tells whether a kept flow counts for the limit of its service. An ended connection does not. An unproven connection, and one that the client
// has reset, count only while the client sends.
static __always_inline int counts_for_limit(const struct tuple *key, const struct flow *f, int young, __u32 time)
{
	if (is_over(f) || (f->forwarding == DIRECT && f->state & STATE_CLOSED))
		return 0;
	return quiet_for(f, time) < MAX_DELAY || !(f->state & STATE_RESET || is_unproven(key->protocol, f, young));
}

// count_for_limit counts a kept flow for the limit of its service.
static __always_inline void count_for_limit(const struct tuple *key, const struct flow *f, int young, __u32 time)
{
	struct service *service = bpf_map_lookup_elem(&services, &f->service);
	struct limit *l;

	if (!service || !(service->checks & LIMITED))
		return;
	l = bpf_map_lookup_elem(&limits, &f->service);
	if (l && counts_for_limit(key, f, young, time))
		l->counted++;
}

static long begin_count(void *map, const __u32 *number, struct limit *l, struct sweep *s)
{
	l->counted = -l->flows;
	return 0;
}

// update_limit corrects the number of flows. A flow that begins or ends during the sweep may be counted wrongly. The next sweep counts it correctly. So the number
// is corrected only by what two sweeps in a row agree on. The rest is the drift.
static long update_limit(void *map, const __u32 *number, struct limit *l, struct sweep *s)
{
	__s32 found = l->counted, agreed = 0;

	if (found > 0 && l->drift > 0)
		agreed = found < l->drift ? found : l->drift;
	else if (found < 0 && l->drift < 0)
		agreed = found > l->drift ? found : l->drift;
	__sync_fetch_and_add(&l->flows, agreed);
	l->drift = found - agreed;
	return 0;
}

static __always_inline long sweep_entry(const struct tuple *key, struct flow *f, struct sweep *s, int young)
{
	struct tuple reverse_key;
	struct flow *reverse;
	struct endpoint *endpoint;

	// The copy of a flow that is in flows is not needed any more.
	if (young && bpf_map_lookup_elem(&flows, key)) {
		bpf_map_delete_elem(&young_flows, key);
		return 0;
	}
	reverse_tuple(key, f, &reverse_key);
	reverse = young ? bpf_map_lookup_elem(&young_flows, &reverse_key) : bpf_map_lookup_elem(&flows, &reverse_key);
	if (!must_keep(key, &reverse_key, f, reverse, young, s->now)) {
		s->removed++;
		delete_flow(key, &reverse_key);
		return 0;
	}
	if (f->state & STATE_REPLY)
		return 0;
	s->kept++;
	count_for_limit(key, f, young, s->now);
	endpoint = bpf_map_lookup_elem(&endpoints, &f->endpoint);
	if (endpoint)
		endpoint->last_sweep = s->stamp;
	return 0;
}

static long sweep_flow(void *map, const struct tuple *key, struct flow *f, struct sweep *s) { return sweep_entry(key, f, s, 0); }
static long sweep_young(void *map, const struct tuple *key, struct flow *f, struct sweep *s) { return sweep_entry(key, f, s, 1); }

SEC("syscall")
int sweep(struct sweep *args)
{
	// Programs of type syscall may not call bpf_ktime_get_coarse_ns.
	struct sweep s = {.stamp = args->stamp, .now = bpf_ktime_get_ns() >> 30};

	bpf_map_update_elem(&ended_count, &(__u32){0}, &(__u32){0}, BPF_ANY);
	bpf_for_each_map_elem(&limits, begin_count, &s, 0);
	bpf_for_each_map_elem(&flows, sweep_flow, &s, 0);
	bpf_for_each_map_elem(&young_flows, sweep_young, &s, 0);
	bpf_for_each_map_elem(&limits, update_limit, &s, 0);
	args->kept = s.kept;
	args->removed = s.removed;
	return 0;
}
