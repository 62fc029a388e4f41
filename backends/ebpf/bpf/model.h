// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The maps that the plugin writes and the programs read, and the maps that only the programs write. Addresses, ports and flags of
// packets are in network order. An IPv4 address is the last word of an addr, and the other words are zero. A field family says
// which of the two it is.
#pragma once

#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct addr {
	__u32 word[4];
};

enum family { IPV4 = 4, IPV6 = 6 };

// An address whose packets the programs handle. They leave other packets untouched.
struct address_key {
	struct addr address;
	__u32 family;
};

enum address_role {
	ROLE_VIP = 1,      // frontends have it
	ROLE_SOURCE = 2,   // the source of rewritten packets: endpoints answer to it
	ROLE_ENDPOINT = 4, // packets from it may be answers to clients
};

struct frontend_key {
	struct addr vip;
	__be16 port;
	__u8 protocol;
	__u8 family;
};

enum forwarding { NAT = 0, TRANSPARENT = 1, DIRECT = 2 };

// Checks before a new flow is created.
enum checks {
	RESTRICTED = 1, // source_ranges
	LIMITED = 2,    // limits
};

struct service {
	__u32 generation; // a flow with another generation does not belong to this service
	__u32 pool;
	__be16 target_port;
	__u8 forwarding;
	__u8 checks;
	__u32 affinity; // seconds; 0: none
	__u32 idle;     // seconds; 0: the default
};

enum endpoint_state {
	UNUSED = 0,           // no endpoint has this number
	CONNECTIONS_ONLY = 1, // keeps established connections
	NO_NEW_FLOWS = 2,     // keeps connections and UDP flows
	ACTIVE = 3,           // may get new flows
};

struct endpoint {
	struct addr address;
	struct addr source; // clients' addresses are rewritten to it
	__u32 generation;   // a flow with another generation does not belong to this endpoint
	__u32 state;
	__u32 last_sweep; // the last sweep that found a flow of this endpoint
};

// Addresses and ports of the packets of one direction of a flow.
struct tuple {
	struct addr source, destination;
	__be16 source_port, destination_port;
	__u8 protocol;
	__u8 family;
	__u16 zero;
};

enum flow_state {
	STATE_REPLY = 1,           // the entry is for packets of the endpoint
	STATE_REPLIED = 2,         // packets of the other direction have been seen
	STATE_CLOSED = 4,          // this direction has been closed
	STATE_PEER_CLOSED = 8,     // the other direction has been closed
	STATE_RESET = 16,          // the client has sent a reset
	STATE_ENDPOINT_RESET = 32, // the endpoint has sent a reset
	STATE_PROVEN = 64,         // the client has acknowledged what the endpoint sent
	STATE_OVER = STATE_CLOSED | STATE_PEER_CLOSED,
};

// One direction of a flow: the addresses and ports to which its packets are rewritten.
struct flow {
	struct addr source, destination;
	__be16 source_port, destination_port;
	__u32 service, service_generation;
	__u32 endpoint, endpoint_generation;
	__u32 seen; // when the last packet came, see now()
	__u8 state;
	__u8 forwarding;
	__u16 started; // in units of 2^22 ns
};

struct settings {
	__u16 first_port, ports; // the range of source ports
	__u8 transparent;        // some service is or was transparent: answers are recognized by the endpoint's address
	__u8 closing;            // packets of unknown flows are left to the host, where another dataplane may take over
	__u8 zero[2];
};

// Why a packet was dropped, or answered by the gateway itself.
enum reason {
	DROP_MALFORMED,
	DROP_FRAGMENT, // the first fragment has not been seen
	DROP_SOURCE_RANGE,
	DROP_SOURCE,  // its source address is one of this gateway
	DROP_NO_PORT, // no source port is free
	DROP_NO_ROUTE,
	DROP_TTL,
	DROP_RATE,    // over a limit: of the service's flows, or of answers by the gateway itself
	DROP_NO_FLOW, // an ICMP error or a reset of an unknown flow
	REFUSED,      // no frontend or no endpoint
	ECHO,
	TOO_BIG,
	REASONS,
};

// Counted in both directions.
struct counter {
	__u64 connections, packets, bytes;
};

// An interface, by its index. The XDP program does not run on interfaces from MAX_INTERFACES on.
struct interface {
	__u8 mac[6];
	__u8 has_xdp;        // the XDP program runs there
	__u8 accepts_frames; // its driver sends frames that XDP programs of other interfaces redirect to it
};

// Default sizes. The plugin sets another size where the operator asks for it (--backend-option flows).
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

// An acknowledgement number from first to last, both included, proves that the client has received what the endpoint sent.
struct proof {
	__u32 first, last;
};

// By the tuple of the client's packets. It has an element for each flow that young_flows can hold.
MAP(BPF_MAP_TYPE_LRU_HASH, struct tuple, struct proof, 1 << 16, 0) proofs SEC(".maps");
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, REASONS, 0) reasons SEC(".maps");
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, MAX_SERVICES, 0) service_counters SEC(".maps");
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, MAX_ENDPOINTS, 0) endpoint_counters SEC(".maps");
MAP(BPF_MAP_TYPE_ARRAY, __u32, struct interface, MAX_INTERFACES, 0) interfaces SEC(".maps");

// The gateway to which packets of unknown connections to a service are redirected.
struct redirect {
	struct addr next;
	__u8 max_redirects; // of a packet, by all gateways together: 1 to MAX_REDIRECTS
	__u8 zero[3];
};

// The TTL of a redirected packet is INITIAL_TTL less the number of its redirects.
enum { INITIAL_TTL = 255, MAX_REDIRECTS = 15 };

// By service number.
MAP(BPF_MAP_TYPE_HASH, __u32, struct redirect, MAX_SERVICES, BPF_F_NO_PREALLOC) handovers SEC(".maps");

// The limits of a service's flows.
struct limit {
	__u32 max_flows, max_new_per_second; // 0: no limit
	__s32 flows;                         // the number now
	__u32 second, new_in_second;         // how many flows began in this second
	__s32 drift;                         // by how much the last sweep found the number to be wrong, without correcting it
	__s32 counted;                       // how many more flows this sweep has counted than there were when it began
};

MAP(BPF_MAP_TYPE_HASH, __u32, struct limit, MAX_SERVICES, BPF_F_NO_PREALLOC) limits SEC(".maps");

// Only the first fragment of a packet has ports. The map gives them to the later fragments.
struct fragment_key {
	struct addr source, destination;
	__u32 id;
	__u8 protocol;
	__u8 family;
	__u16 zero;
};

MAP(BPF_MAP_TYPE_LRU_HASH, struct fragment_key, __u32, 1 << 14, 0) fragments SEC(".maps");

// Networks whose clients may begin flows to a restricted service.
struct range_key {
	__u32 length; // of the prefix, in bits: service and a part of source
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

// The address of the endpoint that serves a client of a service with affinity. The number of the endpoint would be another one in another pool.
struct client_key {
	__u32 service;
	struct addr client;
};

struct affinity {
	struct addr endpoint;
	__u32 seen; // when the last flow began, see now()
};

MAP(BPF_MAP_TYPE_LRU_HASH, struct client_key, struct affinity, 1 << 17, 0) clients SEC(".maps");

// The number of a pool's endpoint, by its address.
struct member_key {
	__u32 pool;
	struct addr endpoint;
};

MAP(BPF_MAP_TYPE_HASH, struct member_key, __u32, MAX_ENDPOINTS, BPF_F_NO_PREALLOC) members SEC(".maps");

// The Maglev table of a pool: the first element is the number of rows, each other element is an endpoint's number.
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
