// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Connections of other dataplanes on this host: sockets, such as a proxy's, and connection tracking.
#pragma once
#include "packet.h"

// The part of struct nf_conn that the programs read, and bits of its status (linux/netfilter/nf_conntrack_common.h).
struct nf_conn {
	unsigned long status;
} __attribute__((preserve_access_index));

#define IPS_SRC_NAT (1 << 4)
#define IPS_DST_NAT (1 << 5)

// conntrack_options is the first version of struct bpf_ct_opts, which later kernels accept as well.
struct conntrack_options {
	__s32 netns_id, error;
	__u8 protocol, direction;
	__u8 zero[2];
};

#ifdef LB_XDP
extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *, struct bpf_sock_tuple *, __u32, struct conntrack_options *, __u32) __ksym __weak;
#define ct_lookup bpf_xdp_ct_lookup
#else
extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *, struct bpf_sock_tuple *, __u32, struct conntrack_options *, __u32) __ksym __weak;
#define ct_lookup bpf_skb_ct_lookup
#endif
extern void bpf_ct_release(struct nf_conn *) __ksym __weak;

// has_conntrack is 1 if the programs can call connection tracking. The plugin sets it before it loads the programs (tracking.go). If it is 0 the verifier
// skips the calls of functions that this kernel does not have.
const volatile __u8 has_conntrack = 0;

// socket_tuple converts the tuple for BPF helpers, and returns its size.
static __always_inline __u32 socket_tuple(const struct tuple *t, struct bpf_sock_tuple *out)
{
	__builtin_memset(out, 0, sizeof(*out));
	if (t->family == IPV4) {
		out->ipv4.saddr = t->source.word[3];
		out->ipv4.daddr = t->destination.word[3];
		out->ipv4.sport = t->source_port;
		out->ipv4.dport = t->destination_port;
		return sizeof(out->ipv4);
	}
	__builtin_memcpy(out->ipv6.saddr, &t->source, 16);
	__builtin_memcpy(out->ipv6.daddr, &t->destination, 16);
	out->ipv6.sport = t->source_port;
	out->ipv6.dport = t->destination_port;
	return sizeof(out->ipv6);
}

// conntrack_status returns the status of the tuple's connection, in either direction. It is 0 without such a connection, and if connection tracking cannot be called.
static __always_inline unsigned long conntrack_status(context *ctx, const struct tuple *t)
{
	struct conntrack_options options = {.netns_id = -1, .protocol = t->protocol};
	struct bpf_sock_tuple tuple;
	__u32 size = socket_tuple(t, &tuple);
	unsigned long status;
	struct nf_conn *found;

	if (!has_conntrack)
		return 0;
	found = size == sizeof(tuple.ipv4) ? ct_lookup(ctx, &tuple, sizeof(tuple.ipv4), &options, sizeof(options)) : ct_lookup(ctx, &tuple, sizeof(tuple.ipv6), &options, sizeof(options));
	if (!found)
		return 0;
	status = found->status;
	bpf_ct_release(found);
	return status;
}

// has_socket tells whether a socket of this host has the connection.
static __always_inline int has_socket(context *ctx, const struct tuple *t)
{
	struct bpf_sock_tuple tuple;
	__u32 size = socket_tuple(t, &tuple);
	struct bpf_sock *found;
	int connected;

	found = size == sizeof(tuple.ipv4) ? bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0)
					   : bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!found)
		return 0;
	connected = found->state != BPF_TCP_LISTEN;
	bpf_sk_release(found);
	return connected;
}

// belongs_to_host tells whether the packet belongs to a TCP connection that another dataplane of this host began.
static __noinline int belongs_to_host(context *ctx, struct packet *p)
{
	if (p->tuple.protocol != IPPROTO_TCP || (p->tcp_flags & (SYN | ACK)) == SYN)
		return 0;
	return has_socket(ctx, &p->tuple) || conntrack_status(ctx, &p->tuple) & IPS_DST_NAT;
}

// is_rewritten_by_host tells whether the packet belongs to a flow that the host rewrites, in either direction. Another dataplane that takes over may have begun
// it between the ports of a former flow of this dataplane.
static __noinline int is_rewritten_by_host(context *ctx, struct packet *p)
{
	return !!(conntrack_status(ctx, &p->tuple) & (IPS_SRC_NAT | IPS_DST_NAT));
}
