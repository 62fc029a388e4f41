// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Flows: which are known, what they become, and how new ones get an endpoint and a source port.
//
// A flow is two entries, one for each direction, and each says all that is needed to write the other: what a packet becomes is,
// turned around, what its answer is. New flows are in young_flows, which forgets what has not been used for longest when
// it is full; those that have been answered and gone on are in flows as well, which forgets nothing by itself (sweep.h does). So
// whoever opens flows without end and never answers harms nobody's established flow. The answers of direct flows do not come
// here: they are one entry, and stay in young_flows; one that is forgotten meets the same endpoint again, while that is listed.
#pragma once

#include "packet.h"

#ifdef LB_XDP
enum { PASS = XDP_PASS, DROP = XDP_DROP };
#else
enum { PASS = -1, DROP = 2 }; // TCX_NEXT and TCX_DROP, or TC_ACT_UNSPEC, with which the next filter goes on, and TC_ACT_SHOT
#endif

// AF_INET and AF_INET6 of socket.h
enum { FAMILY_IPV4 = 2, FAMILY_IPV6 = 10 };

struct scratch {
	struct packet packet;
	struct flow flow;
	struct addr endpoint; // where the flow goes, for one whose destination is not rewritten
	__u32 quiet;          // how long nothing had come, in units of now()
	__u64 time;           // when the packet came, ns
	struct tuple twin_key, other_key;
	struct flow twin, other;
	struct bpf_fib_lookup fib;
	__s32 asked; // what the kernel has answered, BPF_FIB_LKUP_RET_...
	__u32 zero;
};

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct scratch, 1, 0) scratches SEC(".maps");

static __always_inline int dropped(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&reasons, &reason);

	if (count)
		++*count;
	return DROP;
}

// now is when the packet came, by a clock in units of 2^30 ns, a bit more than a second.
static __always_inline __u32 now(const struct scratch *s) { return s->time >> 30; }

// opens tells whether the packet is the first of a connection.
static __always_inline int opens(const struct packet *p) { return p->tuple.protocol == IPPROTO_TCP && (p->tcp_flags & (SYN | ACK)) == SYN; }

// turn_key writes the other direction's key.
static __always_inline void turn_key(const struct tuple *key, const struct flow *f, struct tuple *twin_key)
{
	__builtin_memset(twin_key, 0, sizeof(*twin_key));
	twin_key->source = f->destination;
	twin_key->destination = f->source;
	twin_key->source_port = f->destination_port;
	twin_key->destination_port = f->source_port;
	twin_key->protocol = key->protocol;
	twin_key->family = key->family;
}

// turn_around writes the other direction's entry, from this one's.
static __always_inline void turn_around(const struct tuple *key, const struct flow *f, struct tuple *twin_key, struct flow *twin)
{
	turn_key(key, f, twin_key);
	*twin = *f;
	twin->source = key->destination;
	twin->destination = key->source;
	twin->source_port = key->destination_port;
	twin->destination_port = key->source_port;
	twin->state = f->state & STATE_REPLY ? 0 : STATE_REPLY;
}

static __always_inline void forget(const struct tuple *key, const struct tuple *twin_key)
{
	bpf_map_delete_elem(&flows, key);
	bpf_map_delete_elem(&flows, twin_key);
	bpf_map_delete_elem(&young_flows, key);
	bpf_map_delete_elem(&young_flows, twin_key);
}

// valid tells whether the flow's service and endpoint are still those that it began with. Of an endpoint that has left only
// connections go on.
static __always_inline int valid(const struct flow *f, int connection, struct addr *address)
{
	struct service *service = bpf_map_lookup_elem(&services, &f->service);
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &f->endpoint);

	if (!service || service->generation != f->service_generation || !endpoint || endpoint->generation != f->endpoint_generation)
		return 0;
	if (f->forwarding == DIRECT)
		*address = endpoint->address;
	return endpoint->state >= (connection ? LEFT : KEEPS);
}

static __always_inline struct flow *twin_of(struct scratch *s, const struct flow *f, int young)
{
	turn_around(&s->packet.tuple, f, &s->twin_key, &s->twin);
	return young ? bpf_map_lookup_elem(&young_flows, &s->twin_key) : bpf_map_lookup_elem(&flows, &s->twin_key);
}

// is_over tells whether both sides have ended the connection.
static __always_inline int is_over(const struct flow *f) { return (f->state & STATE_OVER) == STATE_OVER; }

// count_end takes a flow that has ended off those that its service has.
static __always_inline void count_end(const struct flow *f)
{
	struct service *service = bpf_map_lookup_elem(&services, &f->service);
	struct limit *l;

	if (!service || !(service->checks & LIMITED))
		return;
	l = bpf_map_lookup_elem(&limits, &f->service);
	if (l)
		__sync_fetch_and_add(&l->flows, -1);
}

// set_state sets bits of a flow's state and returns what it was. A packet of the other direction may do so on another processor at the same
// time, and there is no atomic operation on a byte: the state is the lowest one of a word.
static __always_inline __u8 set_state(struct flow *f, __u8 bits)
{
	_Static_assert(__builtin_offsetof(struct flow, state) % sizeof(__u32) == 0, "the state begins a word");
	return __sync_fetch_and_or((__u32 *)(void *)&f->state, bits);
}

// note_end notes a FIN or a reset in both directions. A reset by the client proves nothing, since anybody can send it, but that the
// flow need not be kept for long.
static __always_inline void note_end(struct scratch *s, struct flow *f, int young)
{
	int reply = f->state & STATE_REPLY;
	struct flow *twin = twin_of(s, f, young), *client = reply ? twin : f;
	__u8 own = STATE_CLOSED, others = STATE_ANSWERED_CLOSED, before, twins = 0, after;

	if (s->packet.tcp_flags & RST)
		own = others = reply ? STATE_OVER | STATE_ANSWERED_RESET : STATE_RESET;
	before = set_state(f, own);
	after = before | own;
	if (twin)
		twins = set_state(twin, others);
	if (reply) {
		before = twins;
		after = twins | others;
	}
	// Whoever sets the last bit counts it.
	if (client && (before & STATE_OVER) != STATE_OVER && (after & STATE_OVER) == STATE_OVER)
		count_end(client);
}

// settle keeps a flow for good, once the endpoint has answered and the client has gone on.
static __always_inline void settle(struct scratch *s, struct flow *f)
{
	struct packet *p = &s->packet;
	struct flow *twin;

	if (f->state & STATE_REPLY) {
		twin = twin_of(s, f, 1);
		s->twin.state |= STATE_REPLIED;
		if (twin)
			set_state(twin, STATE_REPLIED);
		else
			bpf_map_update_elem(&young_flows, &s->twin_key, &s->twin, BPF_ANY);
	} else if (f->state & STATE_REPLIED && !(p->tuple.protocol == IPPROTO_TCP && p->tcp_flags & SYN)) {
		twin = twin_of(s, f, 1);
		if (twin)
			s->twin.state = twin->state;
		if (!bpf_map_update_elem(&flows, &s->twin_key, &s->twin, BPF_ANY))
			bpf_map_update_elem(&flows, &p->tuple, &s->flow, BPF_ANY);
	}
}

// known finds the packet's flow, and notes what the packet means for it.
static __always_inline int known(struct scratch *s)
{
	struct packet *p = &s->packet;
	struct flow *f = bpf_map_lookup_elem(&flows, &p->tuple);
	int young = !f, tcp = p->tuple.protocol == IPPROTO_TCP, first;
	__u32 time = now(s);

	if (young)
		f = bpf_map_lookup_elem(&young_flows, &p->tuple);
	if (!f)
		return 0;
	first = opens(p) && !(f->state & STATE_REPLY);
	// Who asks again for a connection that nobody has answered may as well ask somebody else, and who opens one between the
	// ports of one that has ended opens another. What an endpoint has answered before it left is still an answer.
	if (!valid(f, f->state & STATE_REPLY || (tcp && !(young && first)), &s->endpoint) || (first && f->state & (STATE_OVER | STATE_RESET))) {
		turn_around(&p->tuple, f, &s->twin_key, &s->twin);
		forget(&p->tuple, &s->twin_key);
		return 0;
	}
	s->quiet = time - f->seen;
	if (s->quiet)
		f->seen = time;
	if (tcp && p->tcp_flags & (FIN | RST))
		note_end(s, f, young);
	s->flow = *f;
	if (young && f->forwarding != DIRECT)
		settle(s, f);
	return 1;
}

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

// search looks for a source port that no other flow to the endpoint has.
struct search {
	struct scratch *scratch;
	__u32 first, ports, start;
	__u32 probes;    // how many ports are looked at
	__u32 desperate; // flows that might go on have to make room
	__u32 found;
};

enum {
	PROBES = 512, // ports that are looked at before others have to make room
	// In units of now(): what is still on its way may come so much later.
	LATE = 2,
	LATE_ANSWER = 4,
	// For so long connection tracking of nodes leads the ports of a connection to the endpoint that has reset it, whatever has become of
	// that (nf_conntrack_tcp_timeout_close, 10 s).
	REMEMBERED = 11,
};

static __always_inline int is_same(const struct tuple *a, const struct tuple *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

// may_replace tells whether the flow, whose answers come as key says, is over.
static __always_inline int may_replace(struct scratch *s, const struct tuple *key, const struct flow *answers, __u32 desperate)
{
	struct flow *f;
	__u32 quiet = now(s) - answers->seen, since;

	turn_around(key, answers, &s->other_key, &s->other);
	f = bpf_map_lookup_elem(&flows, &s->other_key);
	if (!f)
		f = bpf_map_lookup_elem(&young_flows, &s->other_key);
	// The client's entry may have been forgotten before that of its answers.
	if (!f)
		return quiet >= LATE || is_same(&s->other_key, &s->packet.tuple);
	since = now(s) - f->seen;
	if (since < quiet)
		quiet = since;
	if (is_over(f))
		return quiet >= (f->state & STATE_ANSWERED_RESET && !desperate ? REMEMBERED : LATE);
	return desperate && quiet >= LATE_ANSWER && (key->protocol == IPPROTO_UDP || !(f->state & STATE_REPLIED) || f->state & (STATE_OVER | STATE_RESET));
}

// numbers has an element for each port that a search may look at. To walk through them is the loop of kernels before 5.17, which have no bpf_loop;
// what is in them nobody reads.
MAP(BPF_MAP_TYPE_ARRAY, __u32, __u32, 1 << 16, 0) numbers SEC(".maps");

// try_port claims the port that comes so many after the first one, and returns whether the search is over.
static __always_inline long try_port(__u32 index, struct search *search)
{
	struct scratch *s = search->scratch;
	__u32 port = search->first + (search->start + index) % search->ports;
	struct flow *holder;

	s->twin_key.destination_port = bpf_htons(port);
	holder = bpf_map_lookup_elem(&flows, &s->twin_key);
	if (!holder && !bpf_map_update_elem(&young_flows, &s->twin_key, &s->twin, BPF_NOEXIST)) {
		search->found = port;
		return 1;
	}
	if (!holder)
		holder = bpf_map_lookup_elem(&young_flows, &s->twin_key);
	if (!holder || !may_replace(s, &s->twin_key, holder, search->desperate))
		return 0;
	forget(&s->twin_key, &s->other_key);
	if (bpf_map_update_elem(&young_flows, &s->twin_key, &s->twin, BPF_NOEXIST))
		return 0;
	search->found = port;
	return 1;
}

static long try_next_port(void *map, const __u32 *number, __u32 *value, struct search *search)
{
	return *number >= search->probes || try_port(*number, search);
}

// reserve_port claims a source port by writing the entry of the answers: the client's own, if it can be had. Where the source is
// not rewritten no other will do.
static __always_inline int reserve_port(struct scratch *s)
{
	struct settings *settings = bpf_map_lookup_elem(&settings_map, &(__u32){0});
	__u32 own = bpf_ntohs(s->packet.tuple.source_port);
	struct search search = {.scratch = s, .first = own, .ports = 1};

	if (!settings)
		return NO_PORT;
	if (s->flow.forwarding == NAT) {
		search.first = settings->first_port;
		search.ports = settings->ports;
		if (!search.ports)
			return NO_PORT;
		search.start = own - search.first < search.ports ? own - search.first : bpf_get_prandom_u32() % search.ports;
	}
	// Mostly the first one is free.
	if (!try_port(0, &search)) {
		search.probes = search.ports < PROBES ? search.ports : PROBES;
		bpf_for_each_map_elem(&numbers, try_next_port, &search, 0);
	}
	if (!search.found) {
		search.desperate = 1;
		search.probes = search.ports;
		bpf_for_each_map_elem(&numbers, try_next_port, &search, 0);
	}
	if (!search.found)
		return NO_PORT;
	s->flow.source_port = bpf_htons(search.found);
	return CHOSEN;
}

// remembered is the endpoint that the client has had, while it may get new flows.
static __always_inline __u32 remembered(const struct scratch *s, const struct affinity_key *key, __u32 seconds)
{
	struct affinity *a = bpf_map_lookup_elem(&affinities, key);
	struct endpoint *endpoint;

	// A unit of the clock is 1.07 seconds.
	if (!a || (__u64)(now(s) - a->seen) << 30 > (__u64)seconds * 1000000000)
		return 0;
	endpoint = bpf_map_lookup_elem(&endpoints, &a->endpoint);
	return endpoint && endpoint->generation == a->generation && endpoint->state == LISTED ? a->endpoint : 0;
}

// pick chooses the endpoint of a new flow; 0 if there is none.
static __always_inline __u32 pick(const struct scratch *s, __u32 number, const struct service *service)
{
	const struct tuple *t = &s->packet.tuple;
	struct affinity_key key = {.service = number, .pool = service->pool, .client = t->source};
	__u32 *rows, *handle, row, endpoint;
	void *table = bpf_map_lookup_elem(&pools, &service->pool);

	if (!table)
		return 0;
	rows = bpf_map_lookup_elem(table, &(__u32){0});
	if (!rows || !*rows)
		return 0;
	if (service->affinity && (endpoint = remembered(s, &key, service->affinity)))
		return endpoint;
	row = flow_hash(t, !service->affinity) % *rows + 1;
	handle = bpf_map_lookup_elem(table, &row);
	return handle ? *handle : 0;
}

static __always_inline void remember(const struct tuple *t, __u32 number, const struct service *service, const struct flow *f)
{
	struct affinity_key key = {.service = number, .pool = service->pool, .client = t->source};
	struct affinity a = {.endpoint = f->endpoint, .generation = f->endpoint_generation, .seen = f->seen};

	bpf_map_update_elem(&affinities, &key, &a, BPF_ANY);
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

static __always_inline void count_packet(const struct flow *f, __u32 packets, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&service_counters, &f->service);

	if (c) {
		c->packets += packets;
		c->bytes += bytes;
	}
	c = bpf_map_lookup_elem(&endpoint_counters, &f->endpoint);
	if (c) {
		c->packets += packets;
		c->bytes += bytes;
	}
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
	s->endpoint = endpoint->address;
	s->quiet = 0;
	if (f->forwarding != DIRECT) {
		turn_around(t, f, &s->twin_key, &s->twin);
		if (reserve_port(s) != CHOSEN)
			return NO_PORT;
	}
	bpf_map_update_elem(&young_flows, t, f, BPF_ANY);
	if (service->affinity)
		remember(t, number, service, f);
	count_connection(f);
	return CHOSEN;
}
