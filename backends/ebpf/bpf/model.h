// SPDX-License-Identifier: MIT OR GPL-2.0-only
// What the plugin writes and the programs read, and what the programs keep. Addresses, ports and flags of packets are in network
// order; an IPv4 address is the last word of an addr whose other words are zero: the family beside it says which it is.
#pragma once

#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct addr {
	__u32 word[4];
};

enum family { IPV4 = 4, IPV6 = 6 };

// An address that concerns the programs. Packets for others pass on untouched.
struct address_key {
	struct addr address;
	__u32 family;
};

enum address_role {
	ROLE_VIP = 1,      // frontends are on it
	ROLE_SOURCE = 2,   // sources are rewritten to it: answers of endpoints come for it
	ROLE_ENDPOINT = 4, // what comes from it may be an answer to a client
};

struct frontend_key {
	struct addr vip;
	__be16 port;
	__u8 protocol;
	__u8 family;
};

enum forwarding { NAT = 0, TRANSPARENT = 1, DIRECT = 2 };

// What is looked at before a flow begins.
enum checks {
	RESTRICTED = 1, // source_ranges
	LIMITED = 2,    // limits
};

struct service {
	__u32 generation; // flows with another one are not this service's
	__u32 pool;
	__be16 target_port;
	__u8 forwarding;
	__u8 checks;
	__u32 affinity; // seconds; 0: none
	__u32 idle;     // seconds; 0: the default
};

enum endpoint_state {
	GONE = 0,   // nobody
	LEFT = 1,   // keeps established connections
	KEEPS = 2,  // keeps its flows
	LISTED = 3, // may get new ones
};

struct endpoint {
	struct addr address;
	struct addr source;     // what clients' addresses are rewritten to on the way to it
	__u32 generation;       // flows with another one are not this endpoint's
	__u32 state;
	__u32 used;             // the last sweep that met a flow of it
};

// A direction of a flow: what a packet is, and what it becomes.
struct tuple {
	struct addr source, destination;
	__be16 source_port, destination_port;
	__u8 protocol;
	__u8 family;
	__u16 zero;
};

enum flow_state {
	STATE_REPLY = 1,   // belongs to what endpoints send
	STATE_REPLIED = 2, // the other direction has been seen
	STATE_CLOSED = 4,  // this direction has been closed
	STATE_ANSWERED_CLOSED = 8, // the other direction has been closed
	STATE_RESET = 16,          // the client has sent a reset
	STATE_ANSWERED_RESET = 32, // the endpoint has
	STATE_PROVEN = 64,         // the client has shown that it reads what the endpoint sends
	STATE_OVER = STATE_CLOSED | STATE_ANSWERED_CLOSED,
};

struct flow {
	struct addr source, destination;
	__be16 source_port, destination_port;
	__u32 service, service_generation;
	__u32 endpoint, endpoint_generation;
	__u32 seen; // seconds, see now()
	__u8 state;
	__u8 forwarding;
	__u16 began; // by a clock in units of 2^22 ns
};

struct settings {
	__u16 first_port, ports; // the slice of source ports
	__u8 transparent;        // some service is: answers are found by the endpoint's address
	__u8 closing;            // what belongs to no known flow is left to the host, where another backend takes over
	__u8 zero[2];
};

// Why a packet was dropped, or answered by the gateway itself.
enum reason {
	DROP_MALFORMED,
	DROP_FRAGMENT,       // no first fragment has been seen
	DROP_SOURCE_RANGE,
	DROP_SOURCE,         // it claims to come from an address of this gateway
	DROP_NO_PORT,        // no source port is free
	DROP_NO_ROUTE,
	DROP_TTL,
	DROP_RATE,           // more flows than the service may have, or answers by the gateway itself than it gives
	DROP_NO_FLOW,        // an ICMP error or a reset of no known flow
	REFUSED,             // nobody serves it
	ECHO,
	TOO_BIG,
	REASONS,
};

// What has passed, in both directions.
struct counter {
	__u64 connections, packets, bytes;
};

// An interface, by its number. On those that are not here the XDP program does not run.
struct interface {
	__u8 mac[6];
	__u8 runs;      // the XDP program does
	__u8 transmits; // it takes frames from XDP programs of others
};

// The sizes are the defaults: the plugin sets others where the operator asks for them.
#define MAX_SERVICES (1 << 17)
#define MAX_POOLS (1 << 14)
#define MAX_ENDPOINTS (1 << 17)
#define MAX_INTERFACES (1 << 12)

#define MAP(kind, of, to, entries, flags)                                                                                          \
	struct {                                                                                                                   \
		__uint(type, kind);                                                                                                \
		__type(key, of);                                                                                                   \
		__type(value, to);                                                                                                 \
		__uint(max_entries, entries);                                                                                      \
		__uint(map_flags, flags);                                                                                          \
	}

MAP(BPF_MAP_TYPE_HASH, struct address_key, __u32, 1 << 18, BPF_F_NO_PREALLOC) addresses SEC(".maps");
MAP(BPF_MAP_TYPE_HASH, struct frontend_key, __u32, MAX_SERVICES, BPF_F_NO_PREALLOC) frontends SEC(".maps");
MAP(BPF_MAP_TYPE_ARRAY, __u32, struct service, MAX_SERVICES, 0) services SEC(".maps");
MAP(BPF_MAP_TYPE_ARRAY, __u32, struct endpoint, MAX_ENDPOINTS, 0) endpoints SEC(".maps");
MAP(BPF_MAP_TYPE_ARRAY, __u32, struct settings, 1, 0) settings_map SEC(".maps");
MAP(BPF_MAP_TYPE_HASH, struct tuple, struct flow, 1 << 19, 0) flows SEC(".maps");
MAP(BPF_MAP_TYPE_LRU_HASH, struct tuple, struct flow, 1 << 17, 0) young_flows SEC(".maps");

// What an endpoint has sent to a client that has proven nothing yet: an acknowledgement of it lies between these numbers, both included.
struct proof {
	__u32 first, last;
};

// By what the client sends. It holds as many as young_flows holds flows.
MAP(BPF_MAP_TYPE_LRU_HASH, struct tuple, struct proof, 1 << 16, 0) proofs SEC(".maps");
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, REASONS, 0) reasons SEC(".maps");
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, MAX_SERVICES, 0) service_counters SEC(".maps");
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, MAX_ENDPOINTS, 0) endpoint_counters SEC(".maps");
MAP(BPF_MAP_TYPE_ARRAY, __u32, struct interface, MAX_INTERFACES, 0) interfaces SEC(".maps");

// The gateway that may know connections to a service that are not known here, and how many are asked altogether, one after another.
struct handover {
	struct addr next;
	__u8 asks; // 1 to MAX_ASKS
	__u8 zero[3];
};

enum { UNTOUCHED_TTL = 255, MAX_ASKS = 15 };

// By the service's number.
MAP(BPF_MAP_TYPE_HASH, __u32, struct handover, MAX_SERVICES, BPF_F_NO_PREALLOC) handovers SEC(".maps");

// How many flows a service may have.
struct limit {
	__u32 flows_at_once, flows_a_second; // 0: any number
	__s32 flows;                         // it has, by the last sweep and what has begun and ended since
	__u32 second, begun;                 // what has begun in this second
	__u32 stamp, met;                    // what the sweep of that stamp has met
};

MAP(BPF_MAP_TYPE_HASH, __u32, struct limit, MAX_SERVICES, BPF_F_NO_PREALLOC) limits SEC(".maps");

// Fragments but the first have no ports.
struct fragment_key {
	struct addr source, destination;
	__u32 id;
	__u8 protocol;
	__u8 family;
	__u16 zero;
};

MAP(BPF_MAP_TYPE_LRU_HASH, struct fragment_key, __u32, 1 << 14, 0) fragments SEC(".maps");

// Networks that may open flows to a service that is restricted.
struct range_key {
	__u32 length; // bits of the rest that count
	__u32 service;
	struct addr source;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct range_key);
	__type(value, __u8);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} source_ranges SEC(".maps");

// Which endpoint a client of a service with affinity has had: its address, since another pool has the same one by another number.
struct client_key {
	__u32 service;
	struct addr client;
};

struct remembered {
	struct addr endpoint;
	__u32 seen; // seconds, see now()
};

MAP(BPF_MAP_TYPE_LRU_HASH, struct client_key, struct remembered, 1 << 17, 0) clients SEC(".maps");

// The endpoint that a pool has at an address.
struct member_key {
	__u32 pool;
	struct addr endpoint;
};

MAP(BPF_MAP_TYPE_HASH, struct member_key, __u32, MAX_ENDPOINTS, BPF_F_NO_PREALLOC) members SEC(".maps");

// The rows of a pool: the first element is their number, the others are endpoints.
struct rows {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2);
	__uint(map_flags, BPF_F_INNER_MAP);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, MAX_POOLS);
	__array(values, struct rows);
} pools SEC(".maps");
