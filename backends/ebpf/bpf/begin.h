// SPDX-License-Identifier: MIT OR GPL-2.0-only
// How new flows get an endpoint and a source port.
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

// flow_hash is the same on every gateway (MurmurHash3).
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

enum chosen { CHOSEN, NO_ENDPOINT, NO_PORT, TOO_MANY };

// A search costs the same however many ports are taken: it looks at PROBES of them, by chance, and takes the first one that is free. If none is, it
// takes the one whose flow is the most ready to go. Where one of n ports can be had, it finds one with a chance of 1 - (1 - 1/n)^PROBES:
//
//	of 100 ports   20      5      3      2      1
//	PROBES        100%   99.9%    98%    92%    72%
//	FEW            97%     56%    39%    28%    15%
//
// A client whose SYN is dropped sends it again after 1, 3 and 7 s: where one of 100 can be had, 99% find one with that. A search that finds
// no free port says that hardly any is free. After IN_VAIN of them searches for the same endpoint look at FEW ports for the rest of the
// moment, so that a flood costs no more than that. Of FEW unproven flows the oldest is still one of the oldest of all: a client that is
// slow to prove itself outlasts most of a flood's.
enum {
	PROBES = 128,
	FEW = 16,
	IN_VAIN = 8,
	// For so long connection tracking of nodes leads the ports of a connection to the endpoint that has reset it, whatever has become of
	// that (nf_conntrack_tcp_timeout_close, 10 s).
	REMEMBERED = 11, // in units of now()
};

// How ready a flow is to make room for another one. A flow of NEVER goes on, one of AT_ONCE is over. The others go where no port is free, those
// with greater numbers first, and of one kind those that are older.
enum {
	NEVER = 0,
	ENDING = 1,                // one side has closed the connection, and both are quiet
	QUIET_DATAGRAMS = 1 << 16, // the client is gone, or has nothing to say
	REFUSED_LATELY = 2 << 16,  // the endpoint has reset the connection
	UNPROVEN = 3 << 16,        // who knows whether there is a client
	AT_ONCE = 4 << 16,
	OLDEST = (1 << 16) - 1,
};

static __always_inline int is_same(const struct tuple *a, const struct tuple *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

// began is when a flow that begins now has begun.
static __always_inline __u16 began(const struct scratch *s) { return s->time >> 22; }

// readiness tells how ready the flow is to make room, whose answers come as key says.
static __always_inline __u32 readiness(struct scratch *s, const struct tuple *key, const struct flow *answers)
{
	struct flow *f;
	__u32 quiet = now(s) - answers->seen, since, age;
	int kept;

	turn_around(key, answers, &s->other_key, &s->other);
	f = bpf_map_lookup_elem(&flows, &s->other_key);
	kept = !!f;
	if (!f)
		f = bpf_map_lookup_elem(&young_flows, &s->other_key);
	// The client's entry may have been forgotten before that of its answers.
	if (!f)
		return quiet >= LATE || is_same(&s->other_key, &s->packet.tuple) ? AT_ONCE : NEVER;
	since = now(s) - f->seen;
	if (since < quiet)
		quiet = since;
	age = quiet < OLDEST ? quiet : OLDEST;
	if (is_over(f)) {
		if (quiet < LATE)
			return NEVER;
		return f->state & STATE_ANSWERED_RESET && quiet < REMEMBERED ? REFUSED_LATELY + age : AT_ONCE;
	}
	if (key->protocol == IPPROTO_TCP && !kept && !(f->state & STATE_PROVEN))
		return UNPROVEN + (__u16)(began(s) - f->began);
	// An answer to a datagram may be on its way, and the next one to have the port would take it for its own.
	if (quiet < LATE_ANSWER)
		return NEVER;
	if (key->protocol == IPPROTO_UDP)
		return QUIET_DATAGRAMS + age;
	return f->state & (STATE_OVER | STATE_RESET) ? ENDING + age : NEVER;
}

// numbers has an element for each port that a search may look at, and one more. To walk through them is the loop of kernels before 5.17, which have no
// bpf_loop; what is in them nobody reads.
MAP(BPF_MAP_TYPE_ARRAY, __u32, __u32, PROBES + 1, 0) numbers SEC(".maps");

// try_port claims the port, and returns whether the search is over.
static __always_inline long try_port(struct scratch *s, __u32 port)
{
	struct search *search = &s->search;
	struct flow *holder;
	__u32 ready;

	s->twin_key.destination_port = bpf_htons(port);
	holder = bpf_map_lookup_elem(&flows, &s->twin_key);
	if (!holder)
		holder = bpf_map_lookup_elem(&young_flows, &s->twin_key);
	if (holder) {
		ready = readiness(s, &s->twin_key, holder);
		if (ready < search->least) {
			if (ready > search->readiest) {
				search->readiest = ready;
				search->spare = port;
			}
			return 0;
		}
		forget(&s->twin_key, &s->other_key);
	}
	if (bpf_map_update_elem(&young_flows, &s->twin_key, &s->twin, BPF_NOEXIST))
		return 0;
	search->found = port;
	return 1;
}

// searcher leads to what a search remembers from port to port. That is not here: verifiers of older kernels look at a callback once, take what it
// finds on the stack then for what it always finds there, and remove what this rules out.
struct searcher {
	struct scratch *scratch;
};

// try_next_port tries a port, and in the end the one whose flow is the most ready to go. Where there are no more ports than probes each has its turn.
static long try_next_port(void *map, const __u32 *number, __u32 *value, struct searcher *searcher)
{
	struct search *search = &searcher->scratch->search;
	__u32 chosen = search->ports > PROBES ? bpf_get_prandom_u32() : search->start + *number;
	__u32 port = search->first + chosen % search->ports;
	int last = *number >= search->probes;

	if (last) {
		if (!search->spare)
			return 1;
		port = search->spare;
		search->least = search->readiest;
	}
	return try_port(searcher->scratch, port) || last;
}

// shortage counts the searches of a moment that found no free port towards endpoints which share this place of the table. Each processor has its own.
struct shortage {
	__u32 moment, searches;
};

#define SHORTAGES (1 << 10)

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct shortage, SHORTAGES, 0) shortages SEC(".maps");

// look looks at ports until one is claimed.
static __always_inline void look(struct scratch *s)
{
	struct shortage *known = bpf_map_lookup_elem(&shortages, &(__u32){(s->flow.endpoint ^ s->flow.destination_port) % SHORTAGES});
	struct searcher searcher = {.scratch = s};
	struct search *search = &s->search;

	if (!known)
		return;
	if (known->moment != moment(s)) {
		known->moment = moment(s);
		known->searches = 0;
	}
	search->probes = known->searches < IN_VAIN ? PROBES : FEW;
	if (search->ports < search->probes)
		search->probes = search->ports;
	search->start = bpf_get_prandom_u32() % search->ports;
	bpf_for_each_map_elem(&numbers, try_next_port, &searcher, 0);
	if (!search->found || search->least != AT_ONCE)
		known->searches++;
}

// reserve_port claims a source port by writing the entry of the answers: the client's own, if it can be had. Where the source is
// not rewritten no other will do.
static __always_inline int reserve_port(struct scratch *s)
{
	struct settings *settings = bpf_map_lookup_elem(&settings_map, &(__u32){0});
	__u32 own = bpf_ntohs(s->packet.tuple.source_port), port = own;
	struct search *search = &s->search;

	__builtin_memset(search, 0, sizeof(*search));
	search->first = own;
	search->ports = 1;
	search->least = AT_ONCE;
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
	// Mostly the first one is free.
	if (!try_port(s, port))
		look(s);
	if (!search->found)
		return NO_PORT;
	s->flow.source_port = bpf_htons(search->found);
	return CHOSEN;
}

// endpoint_of is the endpoint that the client has had, while the service's pool has it and it may get new flows.
static __always_inline __u32 endpoint_of(const struct scratch *s, const struct client_key *key, const struct service *service)
{
	struct remembered *r = bpf_map_lookup_elem(&clients, key);
	struct member_key member = {.pool = service->pool};
	struct endpoint *endpoint;
	__u32 *handle;

	// A unit of the clock is 1.07 seconds.
	if (!r || (__u64)(now(s) - r->seen) << 30 > (__u64)service->affinity * 1000000000)
		return 0;
	member.endpoint = r->endpoint;
	handle = bpf_map_lookup_elem(&members, &member);
	if (!handle)
		return 0;
	endpoint = bpf_map_lookup_elem(&endpoints, handle);
	return endpoint && endpoint->state == LISTED ? *handle : 0;
}

// pick chooses the endpoint of a new flow; 0 if there is none.
static __always_inline __u32 pick(const struct scratch *s, __u32 number, const struct service *service)
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
	if (service->affinity && (endpoint = endpoint_of(s, &key, service)))
		return endpoint;
	row = flow_hash(t, !service->affinity) % *rows + 1;
	handle = bpf_map_lookup_elem(table, &row);
	return handle ? *handle : 0;
}

static __always_inline void remember(const struct scratch *s, __u32 number)
{
	struct client_key key = {.service = number, .client = s->packet.tuple.source};
	struct remembered r = {.endpoint = s->endpoint, .seen = s->flow.seen};

	bpf_map_update_elem(&clients, &key, &r, BPF_ANY);
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

// admits tells whether the service may have one flow more, and counts it. Processors that ask at the same time may let a few more in.
static __always_inline int admits(const struct scratch *s, __u32 number)
{
	struct limit *l = bpf_map_lookup_elem(&limits, &number);
	__u32 second = s->time / 1000000000;

	if (!l)
		return 1;
	if (l->flows_at_once && l->flows >= (__s32)l->flows_at_once)
		return 0;
	if (l->flows_a_second) {
		if (l->second != second) {
			l->second = second;
			l->begun = 0;
		}
		if (l->begun >= l->flows_a_second)
			return 0;
		__sync_fetch_and_add(&l->begun, 1);
	}
	__sync_fetch_and_add(&l->flows, 1);
	return 1;
}

// choose gives a new flow its endpoint, and writes its entries.
static __always_inline int choose(struct scratch *s, __u32 number, const struct service *service)
{
	const struct tuple *t = &s->packet.tuple;
	struct flow *f = &s->flow;
	struct endpoint *endpoint;
	__u32 handle = pick(s, number, service);

	if (!handle)
		return NO_ENDPOINT;
	endpoint = bpf_map_lookup_elem(&endpoints, &handle);
	if (!endpoint || endpoint->state == GONE)
		return NO_ENDPOINT;
	if (service->checks & LIMITED && !admits(s, number))
		return TOO_MANY;
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
	f->began = began(s);
	s->endpoint = endpoint->address;
	s->quiet = 0;
	if (f->forwarding != DIRECT) {
		turn_around(t, f, &s->twin_key, &s->twin);
		if (reserve_port(s) != CHOSEN)
			return NO_PORT;
	}
	bpf_map_update_elem(&young_flows, t, f, BPF_ANY);
	if (service->affinity)
		remember(s, number);
	count_connection(f);
	return CHOSEN;
}
