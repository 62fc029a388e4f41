// SPDX-License-Identifier: MIT OR GPL-2.0-only
// New flows: the choice of an endpoint and of a source port.
#pragma once

#include "flows.h"

static __always_inline __u32 mix(__u32 hash, __u32 value)
{
	value *= 0xcc9e2d51;
	value = value << 15 | value >> 17;
	hash ^= value * 0x1b873593;
	hash = hash << 13 | hash >> 19;
	return hash * 5 + 0xe6546b64;
}

// flow_hash returns the same value on every gateway (MurmurHash3).
static __always_inline __u32 flow_hash(const struct tuple *t, int with_port)
{
	__u32 hash = 0x6b75626c;

	hash = mix(hash, t->source.word[0]);
	hash = mix(hash, t->source.word[1]);
	hash = mix(hash, t->source.word[2]);
	hash = mix(hash, t->source.word[3]);
	if (with_port) {
		hash = mix(hash, t->destination.word[3]);
		hash = mix(hash, (__u32)t->source_port << 16 | t->destination_port);
		hash = mix(hash, t->protocol);
	}
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

enum created { CREATED, NO_ENDPOINT, NO_PORT, LIMIT_REACHED };

// The cost of a search does not grow with the number of used ports: it tries MAX_TRIES random ports, and takes the first free one. If none is free, it
// evicts the flow with the highest rank among them. The chance to find a port, by how many of 100 ports are free or can be evicted:
//
//	ports       20      5      3      2      1
//	MAX_TRIES  100%   99.9%    98%    92%    72%
//	FEW_TRIES   97%     56%    39%    28%    15%
//
// A client repeats a dropped SYN after 1, 3 and 7 s: with one port of 100, 99% of the clients get a port within these tries. After FAILED_SEARCHES
// searches without a free port, hardly any port is free. So searches for the same endpoint try only FEW_TRIES ports for the rest of the tick, which bounds
// the cost of a flood. The oldest of FEW_TRIES unproven flows is still one of the oldest of all: the flow of a slow client outlives most flows of a flood.
enum {
	MAX_TRIES = 128,
	FEW_TRIES = 16,
	FAILED_SEARCHES = 8,
	// Connection tracking of nodes sends packets between the ports of a reset connection to the former endpoint for 10 s
	// (nf_conntrack_tcp_timeout_close).
	CONNTRACK_CLOSE = 11, // in units of now()
};

// The rank of a flow when its source port is wanted for another one. If no port is free, the flow with the highest rank is evicted. To the start of a range
// the age is added, so that older flows go first.
enum {
	EVICT_NEVER = 0,           // the flow goes on
	EVICT_CLOSED = 1,          // one side has closed the connection, and both are quiet
	EVICT_QUIET_UDP = 1 << 16, // the client is gone or quiet
	EVICT_RESET = 2 << 16,     // the endpoint has reset the connection
	EVICT_UNPROVEN = 3 << 16,  // the client may not exist
	EVICT_AT_ONCE = 4 << 16,   // the flow is over
	MAX_AGE = (1 << 16) - 1,
};

static __always_inline int is_same_tuple(const struct tuple *a, const struct tuple *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

// start_time returns the start time of a flow that begins now.
static __always_inline __u16 start_time(const struct scratch *s) { return s->time >> 22; }

// eviction_rank returns the rank of the flow whose entry of answers has this key.
static __always_inline __u32 eviction_rank(struct scratch *s, const struct tuple *key, const struct flow *answers)
{
	struct flow *f;
	__u32 quiet = now(s) - answers->seen, since, age;
	int kept;

	reverse_flow(key, answers, &s->existing_key, &s->existing);
	f = bpf_map_lookup_elem(&flows, &s->existing_key);
	kept = !!f;
	if (!f)
		f = bpf_map_lookup_elem(&young_flows, &s->existing_key);
	// The client's entry may have been evicted before the entry of the answers.
	if (!f)
		return quiet >= MAX_DELAY || is_same_tuple(&s->existing_key, &s->packet.tuple) ? EVICT_AT_ONCE : EVICT_NEVER;
	since = now(s) - f->seen;
	if (since < quiet)
		quiet = since;
	age = quiet < MAX_AGE ? quiet : MAX_AGE;
	if (is_over(f)) {
		if (quiet < MAX_DELAY)
			return EVICT_NEVER;
		return f->state & STATE_ENDPOINT_RESET && quiet < CONNTRACK_CLOSE ? EVICT_RESET + age : EVICT_AT_ONCE;
	}
	if (key->protocol == IPPROTO_TCP && !kept && !(f->state & STATE_PROVEN))
		return EVICT_UNPROVEN + (__u16)(start_time(s) - f->started);
	// A late answer to a datagram would reach the next client with this port.
	if (quiet < MAX_ANSWER_DELAY)
		return EVICT_NEVER;
	if (key->protocol == IPPROTO_UDP)
		return EVICT_QUIET_UDP + age;
	return f->state & (STATE_OVER | STATE_RESET) ? EVICT_CLOSED + age : EVICT_NEVER;
}

// port_tries is only iterated, as a loop for kernels before 5.17, which do not have bpf_loop. Nothing reads its values. It has an element for each try, and one for
// an eviction.
MAP(BPF_MAP_TYPE_ARRAY, __u32, __u32, MAX_TRIES + 1, 0) port_tries SEC(".maps");

// try_port claims the port if it is free or its flow can be evicted. It returns 1 if the search is over.
static __always_inline long try_port(struct scratch *s, __u32 port)
{
	struct search *search = &s->search;
	struct flow *existing;
	__u32 rank;

	s->reverse_key.destination_port = bpf_htons(port);
	existing = bpf_map_lookup_elem(&flows, &s->reverse_key);
	if (!existing)
		existing = bpf_map_lookup_elem(&young_flows, &s->reverse_key);
	if (existing) {
		rank = eviction_rank(s, &s->reverse_key, existing);
		if (rank < search->min_rank) {
			if (rank > search->best_rank) {
				search->best_rank = rank;
				search->best_port = port;
			}
			return 0;
		}
		delete_flow(&s->reverse_key, &s->existing_key);
	}
	if (bpf_map_update_elem(&young_flows, &s->reverse_key, &s->reverse, BPF_NOEXIST))
		return 0;
	search->found = port;
	return 1;
}

// search_context points to the state of a search. The state itself is not on the stack: verifiers of older kernels check a callback once, take the values on
// the stack at that time for constants, and remove code that these rule out.
struct search_context {
	struct scratch *scratch;
};

// try_next_port tries a port, and at the end the port whose flow has the highest rank. If there are no more ports than tries it tries each port once.
static long try_next_port(void *map, const __u32 *number, __u32 *value, struct search_context *context)
{
	struct search *search = &context->scratch->search;
	__u32 chosen = search->ports > MAX_TRIES ? bpf_get_prandom_u32() : search->start + *number;
	__u32 port = search->first + chosen % search->ports;
	int last = *number >= search->tries;

	if (last) {
		if (!search->best_port)
			return 1;
		port = search->best_port;
		search->min_rank = search->best_rank;
	}
	return try_port(context->scratch, port) || last;
}

// shortage counts the searches in a tick that found no free port, for all endpoints with this index of the table. Each processor has its own table.
struct shortage {
	__u32 tick, searches;
};

#define SHORTAGES (1 << 10)

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct shortage, SHORTAGES, 0) shortages SEC(".maps");

// search_port tries ports until it has claimed one.
static __always_inline void search_port(struct scratch *s)
{
	struct shortage *shortage = bpf_map_lookup_elem(&shortages, &(__u32){(s->flow.endpoint ^ s->flow.destination_port) % SHORTAGES});
	struct search_context context = {.scratch = s};
	struct search *search = &s->search;

	if (!shortage)
		return;
	if (shortage->tick != tick(s)) {
		shortage->tick = tick(s);
		shortage->searches = 0;
	}
	search->tries = shortage->searches < FAILED_SEARCHES ? MAX_TRIES : FEW_TRIES;
	if (search->ports < search->tries)
		search->tries = search->ports;
	search->start = bpf_get_prandom_u32() % search->ports;
	bpf_for_each_map_elem(&port_tries, try_next_port, &context, 0);
	if (!search->found || search->min_rank != EVICT_AT_ONCE)
		shortage->searches++;
}

// reserve_port claims a source port: it writes the entry of the answers. It prefers the client's own port, which is the only choice if the source is not
// rewritten.
static __always_inline int reserve_port(struct scratch *s)
{
	struct settings *settings = bpf_map_lookup_elem(&settings_map, &(__u32){0});
	__u32 own = bpf_ntohs(s->packet.tuple.source_port), port = own;
	struct search *search = &s->search;

	__builtin_memset(search, 0, sizeof(*search));
	search->first = own;
	search->ports = 1;
	search->min_rank = EVICT_AT_ONCE;
	if (!settings)
		return NO_PORT;
	if (s->flow.forwarding == NAT) {
		search->first = settings->first_port;
		search->ports = settings->ports;
		if (!search->ports)
			return NO_PORT;
		if (own - search->first >= search->ports)
			port = search->first + bpf_get_prandom_u32() % search->ports;
	}
	// The first port is usually free.
	if (!try_port(s, port))
		search_port(s);
	if (!search->found)
		return NO_PORT;
	s->flow.source_port = bpf_htons(search->found);
	return CREATED;
}

// affinity_endpoint returns the former endpoint of the client, if it is in the service's pool and may get new flows.
static __always_inline __u32 affinity_endpoint(const struct scratch *s, const struct client_key *key, const struct service *service)
{
	struct affinity *a = bpf_map_lookup_elem(&clients, key);
	struct member_key member = {.pool = service->pool};
	struct endpoint *endpoint;
	__u32 *handle;

	// A unit of the clock is 1.07 seconds.
	if (!a || (__u64)(now(s) - a->seen) << 30 > (__u64)service->affinity * 1000000000)
		return 0;
	member.endpoint = a->endpoint;
	handle = bpf_map_lookup_elem(&members, &member);
	if (!handle)
		return 0;
	endpoint = bpf_map_lookup_elem(&endpoints, handle);
	return endpoint && endpoint->state == ACTIVE ? *handle : 0;
}

// select_endpoint returns the number of the endpoint of a new flow, or 0 if there is none.
static __always_inline __u32 select_endpoint(const struct scratch *s, __u32 number, const struct service *service)
{
	const struct tuple *t = &s->packet.tuple;
	struct client_key key = {.service = number, .client = t->source};
	__u32 *rows, *handle, row, endpoint;
	void *table = bpf_map_lookup_elem(&pools, &service->pool);

	if (!table)
		return 0;
	rows = bpf_map_lookup_elem(table, &(__u32){0});
	if (!rows || !*rows)
		return 0;
	if (service->affinity && (endpoint = affinity_endpoint(s, &key, service)))
		return endpoint;
	row = flow_hash(t, !service->affinity) % *rows + 1;
	handle = bpf_map_lookup_elem(table, &row);
	return handle ? *handle : 0;
}

static __always_inline void store_affinity(const struct scratch *s, __u32 number)
{
	struct client_key key = {.service = number, .client = s->packet.tuple.source};
	struct affinity a = {.endpoint = s->endpoint, .seen = s->flow.seen};

	bpf_map_update_elem(&clients, &key, &a, BPF_ANY);
}

static __always_inline void count_connection(const struct flow *f)
{
	struct counter *c = bpf_map_lookup_elem(&service_counters, &f->service);

	if (c)
		c->connections++;
	c = bpf_map_lookup_elem(&endpoint_counters, &f->endpoint);
	if (c)
		c->connections++;
}

// within_limit tells whether the service may have one more flow, and counts it. Processors that call it at the same time may admit a few too many.
static __always_inline int within_limit(const struct scratch *s, __u32 number)
{
	struct limit *l = bpf_map_lookup_elem(&limits, &number);
	__u32 second = s->time / 1000000000;

	if (!l)
		return 1;
	if (l->max_flows && l->flows >= (__s32)l->max_flows)
		return 0;
	if (l->max_new_per_second) {
		if (l->second != second) {
			l->second = second;
			l->new_in_second = 0;
		}
		if (l->new_in_second >= l->max_new_per_second)
			return 0;
		__sync_fetch_and_add(&l->new_in_second, 1);
	}
	__sync_fetch_and_add(&l->flows, 1);
	return 1;
}

// create_flow selects an endpoint and a source port, and writes the flow's entries.
static __always_inline int create_flow(struct scratch *s, __u32 number, const struct service *service)
{
	const struct tuple *t = &s->packet.tuple;
	struct flow *f = &s->flow;
	struct endpoint *endpoint;
	__u32 handle = select_endpoint(s, number, service);

	if (!handle)
		return NO_ENDPOINT;
	endpoint = bpf_map_lookup_elem(&endpoints, &handle);
	if (!endpoint || endpoint->state == UNUSED)
		return NO_ENDPOINT;
	if (service->checks & LIMITED && !within_limit(s, number))
		return LIMIT_REACHED;
	__builtin_memset(f, 0, sizeof(*f));
	f->source = service->forwarding == NAT ? endpoint->source : t->source;
	f->source_port = t->source_port;
	f->destination = service->forwarding == DIRECT ? t->destination : endpoint->address;
	f->destination_port = service->forwarding == DIRECT ? t->destination_port : service->target_port;
	f->service = number;
	f->service_generation = service->generation;
	f->endpoint = handle;
	f->endpoint_generation = endpoint->generation;
	f->forwarding = service->forwarding;
	f->seen = now(s);
	f->started = start_time(s);
	s->endpoint = endpoint->address;
	s->quiet = 0;
	if (f->forwarding != DIRECT) {
		reverse_flow(t, f, &s->reverse_key, &s->reverse);
		if (reserve_port(s) != CREATED)
			return NO_PORT;
	}
	bpf_map_update_elem(&young_flows, t, f, BPF_ANY);
	if (service->affinity)
		store_affinity(s, number);
	count_connection(f);
	return CREATED;
}
