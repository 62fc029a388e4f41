// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Flows: which are known, what they become, and how new ones get an endpoint and a source port.
//
// A flow is two entries, one for each direction, and each says all that is needed to write the other: what a packet becomes is,
// turned around, what its answer is. New flows are in young_flows, which forgets what has not been used for longest when
// it is full; those that are proven are in flows as well, which forgets nothing by itself (sweep.h does). A TCP flow is proven when
// its client acknowledges what the endpoint has sent: who gives a false address does not see that, and has to guess a number of 32
// bits. Until then its endpoint's answers prove nothing, and it is the first to go where source ports are scarce. UDP has no such number:
// there an answer and a further datagram of the client's are enough. So whoever opens flows without end and never hears an answer
// harms nobody's established flow. The answers of direct flows do not come here: they are one entry, and stay in young_flows; one that is
// forgotten meets the same endpoint again, while that is listed.
#pragma once

#include "packet.h"

#ifdef LB_XDP
enum { PASS = XDP_PASS, DROP = XDP_DROP };
#else
enum { PASS = -1, DROP = 2 }; // TCX_NEXT and TCX_DROP, or TC_ACT_UNSPEC, with which the next filter goes on, and TC_ACT_SHOT
#endif

// AF_INET and AF_INET6 of socket.h
enum { FAMILY_IPV4 = 2, FAMILY_IPV6 = 10 };

// search looks for a source port that no other flow to the endpoint has.
struct search {
	__u32 first, ports, start;
	__u32 probes; // how many ports are looked at
	__u32 least;  // how ready to go a port's flow has to be
	__u32 spare, readiest; // the port whose flow is the most ready of those that have been looked at, and how ready that is; 0: none
	__u32 found;
};

struct scratch {
	struct packet packet;
	struct flow flow;
	struct addr endpoint; // where the flow goes, for one whose destination is not rewritten
	__u32 quiet;          // how long nothing had come, in units of now()
	__u64 time;           // when the packet came, ns
	struct tuple twin_key, other_key;
	struct flow twin, other;
	struct search search;
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

// moment is a short while: 2^26 ns, 67 ms.
static __always_inline __u32 moment(const struct scratch *s) { return s->time >> 26; }

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

// MOST_AHEAD bounds the numbers that prove something: a client that guesses hits one of 4096 times at best, and only where the endpoint
// sends so much to a client that has not answered.
#define MOST_AHEAD (1 << 20)

// expect notes which acknowledgements prove that the client has read what the endpoint sends now. Mostly that is one number, the one after
// the endpoint's SYN. What comes later counts as well: the endpoint may send before it has heard of the client (TCP Fast Open), and
// of the SYN nothing may be known, as of connections that an earlier version of the programs saw begin. A reset has the number of
// what it answers, which the client has chosen.
static __always_inline void expect(const struct packet *p, const struct tuple *client)
{
	__u32 payload = p->length - (p->transport - p->network) - p->tcp_header;
	__u32 end = bpf_ntohl(p->sequence) + payload + !!(p->tcp_flags & SYN) + !!(p->tcp_flags & FIN);
	struct proof fresh = {.first = end, .last = end}, *known;

	if (p->tcp_flags & RST || p->fragment != WHOLE)
		return;
	known = bpf_map_lookup_elem(&proofs, client);
	if (!known || p->tcp_flags & SYN)
		bpf_map_update_elem(&proofs, client, &fresh, BPF_ANY);
	else if (end - known->first < MOST_AHEAD && (__s32)(end - known->last) > 0)
		known->last = end;
}

// proves tells whether the client's packet acknowledges what only who hears the endpoint can know.
static __always_inline int proves(const struct packet *p)
{
	struct proof *expected;

	if ((p->tcp_flags & (SYN | RST | ACK)) != ACK)
		return 0;
	expected = bpf_map_lookup_elem(&proofs, &p->tuple);
	return expected && bpf_ntohl(p->acknowledged) - expected->first <= expected->last - expected->first;
}

// is_proven tells whether the client's packet is of a flow that is worth to be kept, now or since earlier.
static __always_inline int is_proven(struct scratch *s, struct flow *f)
{
	struct packet *p = &s->packet;

	if (p->tuple.protocol != IPPROTO_TCP || f->state & STATE_PROVEN)
		return 1;
	if (!proves(p))
		return 0;
	bpf_map_delete_elem(&proofs, &p->tuple);
	set_state(f, STATE_PROVEN);
	s->flow.state |= STATE_PROVEN;
	return 1;
}

// settle keeps a flow for good, once the endpoint has answered and the client has heard it.
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
		if (p->tuple.protocol == IPPROTO_TCP && !(twin && twin->state & STATE_PROVEN))
			expect(p, &s->twin_key);
	} else if (f->state & STATE_REPLIED && is_proven(s, f)) {
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
	// In units of now(): what is still on its way may come so much later.
	LATE = 2,
	LATE_ANSWER = 4,
	// For so long connection tracking of nodes leads the ports of a connection to the endpoint that has reset it, whatever has become of
	// that (nf_conntrack_tcp_timeout_close, 10 s).
	REMEMBERED = 11,
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
		remember(t, number, service, f);
	count_connection(f);
	return CHOSEN;
}
