// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Flows: which are known, and what they become.
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

// In units of now(): what is still on its way may come so much later.
enum { LATE = 2, LATE_ANSWER = 4 };

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

// has_fallen_silent tells whether the flow's endpoint has left and has sent nothing since the client sent something, some time ago. A client that
// opens a connection between the ports of one that it has lost meets another endpoint then. An endpoint that is there answers: so a
// SYN with a false source address ends nothing.
static __always_inline int has_fallen_silent(struct scratch *s, const struct flow *f)
{
	struct addr address;
	struct flow *answers;

	if (now(s) == f->seen || valid(f, 0, &address))
		return 0;
	turn_key(&s->packet.tuple, f, &s->twin_key);
	answers = bpf_map_lookup_elem(&flows, &s->twin_key);
	return !answers || (__s32)(answers->seen - f->seen) < 0;
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
	if (!valid(f, f->state & STATE_REPLY || (tcp && !(young && first)), &s->endpoint) || (first && (f->state & (STATE_OVER | STATE_RESET) || has_fallen_silent(s, f)))) {
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
