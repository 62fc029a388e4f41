// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The tables of flows.
//
// A flow has two entries, one for each direction. An entry has all that is needed to write the other one: a rewritten packet, with source and destination
// swapped, is what its answer looks like. New flows are in young_flows. When that is full, the flow that was quiet for longest is evicted. Proven flows
// are in flows as well, from which only the sweep deletes (sweep.h).
//
// A TCP flow is proven when its client acknowledges what the endpoint has sent. A sender with a forged address does not receive that, and would have to
// guess a number of 32 bits. Until then the endpoint's answers do not count, and the flow is the first to be evicted if source ports are scarce. UDP has no
// such number: an answer and another datagram of the client are enough. So a flood of flows whose senders receive no answers harms no established flow.
//
// The answers of direct flows do not pass this gateway. Such a flow has one entry, which stays in young_flows. After an eviction it gets the same endpoint
// again, as long as that may get new flows.
#pragma once

#include "packet.h"

#ifdef LB_XDP
enum { PASS = XDP_PASS, DROP = XDP_DROP };
#else
enum { PASS = -1, DROP = 2 }; // with tcx TCX_NEXT and TCX_DROP; with clsact TC_ACT_UNSPEC (the next filter runs) and TC_ACT_SHOT
#endif

// How long a packet, or an answer, may still be on its way, in units of now().
enum { MAX_DELAY = 2, MAX_ANSWER_DELAY = 4 };

// AF_INET and AF_INET6 of socket.h
enum { FAMILY_IPV4 = 2, FAMILY_IPV6 = 10 };

// The search for a source port that no other flow to the endpoint has.
struct search {
	__u32 first, ports, start;
	__u32 tries;    // how many ports are tried
	__u32 min_rank; // flows of this rank or higher are evicted
	__u32 best_port, best_rank; // the port with the highest rank below that so far; 0: none
	__u32 found;
};

struct scratch {
	struct packet packet;
	struct flow flow;
	struct addr endpoint; // the address of the endpoint, if the destination is not rewritten
	__u32 quiet;          // the time since the flow's last packet, in units of now()
	__u64 time;           // when the packet came, ns
	struct tuple reverse_key, existing_key;
	struct flow reverse, existing;
	struct search search;
	struct bpf_fib_lookup fib;
	__s32 lookup; // the result of the route lookup, BPF_FIB_LKUP_RET_...
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

// now returns when the packet came, in units of 2^30 ns (1.07 s).
static __always_inline __u32 now(const struct scratch *s) { return s->time >> 30; }

// tick returns when the packet came, in units of 2^26 ns (67 ms).
static __always_inline __u32 tick(const struct scratch *s) { return s->time >> 26; }

// begins_connection tells whether the packet is the first one of a TCP connection.
static __always_inline int begins_connection(const struct packet *p) { return p->tuple.protocol == IPPROTO_TCP && (p->tcp_flags & (SYN | ACK)) == SYN; }

// reverse_tuple writes the key of the opposite direction.
static __always_inline void reverse_tuple(const struct tuple *key, const struct flow *f, struct tuple *reverse_key)
{
	__builtin_memset(reverse_key, 0, sizeof(*reverse_key));
	reverse_key->source = f->destination;
	reverse_key->destination = f->source;
	reverse_key->source_port = f->destination_port;
	reverse_key->destination_port = f->source_port;
	reverse_key->protocol = key->protocol;
	reverse_key->family = key->family;
}

// reverse_flow writes key and entry of the opposite direction.
static __always_inline void reverse_flow(const struct tuple *key, const struct flow *f, struct tuple *reverse_key, struct flow *reverse)
{
	reverse_tuple(key, f, reverse_key);
	*reverse = *f;
	reverse->source = key->destination;
	reverse->destination = key->source;
	reverse->source_port = key->destination_port;
	reverse->destination_port = key->source_port;
	reverse->state = f->state & STATE_REPLY ? 0 : STATE_REPLY;
}

static __always_inline void delete_flow(const struct tuple *key, const struct tuple *reverse_key)
{
	bpf_map_delete_elem(&flows, key);
	bpf_map_delete_elem(&flows, reverse_key);
	bpf_map_delete_elem(&young_flows, key);
	bpf_map_delete_elem(&young_flows, reverse_key);
}

// is_valid tells whether the flow's service and endpoint are the same as when it began, and the endpoint keeps such flows.
static __always_inline int is_valid(const struct flow *f, int connection, struct addr *address)
{
	struct service *service = bpf_map_lookup_elem(&services, &f->service);
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &f->endpoint);

	if (!service || service->generation != f->service_generation || !endpoint || endpoint->generation != f->endpoint_generation)
		return 0;
	if (f->forwarding == DIRECT)
		*address = endpoint->address;
	return endpoint->state >= (connection ? CONNECTIONS_ONLY : NO_NEW_FLOWS);
}

static __always_inline struct flow *find_reverse(struct scratch *s, const struct flow *f, int young)
{
	reverse_flow(&s->packet.tuple, f, &s->reverse_key, &s->reverse);
	return young ? bpf_map_lookup_elem(&young_flows, &s->reverse_key) : bpf_map_lookup_elem(&flows, &s->reverse_key);
}

// is_over tells whether both sides have ended the connection.
static __always_inline int is_over(const struct flow *f) { return (f->state & STATE_OVER) == STATE_OVER; }

// count_end subtracts an ended flow from the number of flows that the limit of its service has.
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

// set_state sets bits of a flow's state and returns the former state. A packet of the other direction may do the same on another processor. There is no
// atomic operation on a byte, so the state is the lowest byte of a word.
static __always_inline __u8 set_state(struct flow *f, __u8 bits)
{
	_Static_assert(__builtin_offsetof(struct flow, state) % sizeof(__u32) == 0, "the state is the first byte of a word");
	return __sync_fetch_and_or((__u32 *)(void *)&f->state, bits);
}

// record_end records a FIN or a reset in both entries. A reset by the client only shortens the lifetime of the flow: anybody can forge such a reset.
static __always_inline void record_end(struct scratch *s, struct flow *f, int young)
{
	int reply = f->state & STATE_REPLY;
	struct flow *reverse = find_reverse(s, f, young), *client = reply ? reverse : f;
	__u8 own = STATE_CLOSED, others = STATE_PEER_CLOSED, before, twins = 0, after;

	if (s->packet.tcp_flags & RST)
		own = others = reply ? STATE_OVER | STATE_ENDPOINT_RESET : STATE_RESET;
	before = set_state(f, own);
	after = before | own;
	if (reverse)
		twins = set_state(reverse, others);
	if (reply) {
		before = twins;
		after = twins | others;
	}
	// The packet that sets the last bit is counted.
	if (client && (before & STATE_OVER) != STATE_OVER && (after & STATE_OVER) == STATE_OVER)
		count_end(client);
}

// MAX_AHEAD bounds the range of numbers that prove a flow: a guess is right once in 4096 times, and only if the endpoint sends that much to a client that
// has not acknowledged anything.
#define MAX_AHEAD (1 << 20)

// expect_ack records which acknowledgements prove that the client has received this packet of the endpoint. Usually that is one number: the one after the
// endpoint's SYN. Later numbers count as well: the endpoint may send data before the client acknowledges (TCP Fast Open), and the SYN may have been sent
// before these programs ran. A reset does not count: the client has chosen its number.
static __always_inline void expect_ack(const struct packet *p, const struct tuple *client)
{
	__u32 payload = p->length - (p->transport - p->network) - p->tcp_header;
	__u32 end = bpf_ntohl(p->sequence) + payload + !!(p->tcp_flags & SYN) + !!(p->tcp_flags & FIN);
	struct proof new = {.first = end, .last = end}, *known;

	if (p->tcp_flags & RST || p->fragment != WHOLE)
		return;
	known = bpf_map_lookup_elem(&proofs, client);
	if (!known || p->tcp_flags & SYN)
		bpf_map_update_elem(&proofs, client, &new, BPF_ANY);
	else if (end - known->first < MAX_AHEAD && (__s32)(end - known->last) > 0)
		known->last = end;
}

// acknowledges_endpoint tells whether the client's packet has a number that only a receiver of the endpoint's packets knows.
static __always_inline int acknowledges_endpoint(const struct packet *p)
{
	struct proof *expected;

	if ((p->tcp_flags & (SYN | RST | ACK)) != ACK)
		return 0;
	expected = bpf_map_lookup_elem(&proofs, &p->tuple);
	return expected && bpf_ntohl(p->acknowledged) - expected->first <= expected->last - expected->first;
}

// prove tells whether the flow of the client's packet is proven, by this packet or an earlier one, and records it.
static __always_inline int prove(struct scratch *s, struct flow *f)
{
	struct packet *p = &s->packet;

	if (p->tuple.protocol != IPPROTO_TCP || f->state & STATE_PROVEN)
		return 1;
	if (!acknowledges_endpoint(p))
		return 0;
	bpf_map_delete_elem(&proofs, &p->tuple);
	set_state(f, STATE_PROVEN);
	s->flow.state |= STATE_PROVEN;
	return 1;
}

// promote records an answer of the endpoint, and copies a young flow to flows once it is proven.
static __always_inline void promote(struct scratch *s, struct flow *f)
{
	struct packet *p = &s->packet;
	struct flow *reverse;

	if (f->state & STATE_REPLY) {
		reverse = find_reverse(s, f, 1);
		s->reverse.state |= STATE_REPLIED;
		if (reverse)
			set_state(reverse, STATE_REPLIED);
		else
			bpf_map_update_elem(&young_flows, &s->reverse_key, &s->reverse, BPF_ANY);
		if (p->tuple.protocol == IPPROTO_TCP && !(reverse && reverse->state & STATE_PROVEN))
			expect_ack(p, &s->reverse_key);
	} else if (f->state & STATE_REPLIED && prove(s, f)) {
		reverse = find_reverse(s, f, 1);
		if (reverse)
			s->reverse.state = reverse->state;
		if (!bpf_map_update_elem(&flows, &s->reverse_key, &s->reverse, BPF_ANY))
			bpf_map_update_elem(&flows, &p->tuple, &s->flow, BPF_ANY);
	}
}

// endpoint_is_silent tells whether the flow's endpoint keeps established connections only, and has sent nothing since the client's last packet, more than a
// second ago. Then a client that opens another connection between the same ports gets another endpoint. A running endpoint answers, so a SYN with a forged
// source address ends no connection.
static __always_inline int endpoint_is_silent(struct scratch *s, const struct flow *f)
{
	struct addr address;
	struct flow *answers;

	if (now(s) == f->seen || is_valid(f, 0, &address))
		return 0;
	reverse_tuple(&s->packet.tuple, f, &s->reverse_key);
	answers = bpf_map_lookup_elem(&flows, &s->reverse_key);
	return !answers || (__s32)(answers->seen - f->seen) < 0;
}

// find_flow finds the packet's flow, and updates it. It returns 0 if there is none, or if the packet begins another one between the same ports.
static __always_inline int find_flow(struct scratch *s)
{
	struct packet *p = &s->packet;
	struct flow *f = bpf_map_lookup_elem(&flows, &p->tuple);
	int young = !f, tcp = p->tuple.protocol == IPPROTO_TCP, first;
	__u32 time = now(s);

	if (young)
		f = bpf_map_lookup_elem(&young_flows, &p->tuple);
	if (!f)
		return 0;
	first = begins_connection(p) && !(f->state & STATE_REPLY);
	// A repeated SYN that no endpoint has answered may get another endpoint. A SYN between the ports of an ended connection begins another one. Answers that an
	// endpoint sent before it was removed still reach the client.
	if (!is_valid(f, f->state & STATE_REPLY || (tcp && !(young && first)), &s->endpoint) || (first && (f->state & (STATE_OVER | STATE_RESET) || endpoint_is_silent(s, f)))) {
		reverse_flow(&p->tuple, f, &s->reverse_key, &s->reverse);
		delete_flow(&p->tuple, &s->reverse_key);
		return 0;
	}
	s->quiet = time - f->seen;
	if (s->quiet)
		f->seen = time;
	if (tcp && p->tcp_flags & (FIN | RST))
		record_end(s, f, young);
	s->flow = *f;
	if (young && f->forwarding != DIRECT)
		promote(s, f);
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
