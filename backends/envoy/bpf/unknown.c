//go:build ignore
// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The program at the ingress of interfaces. It finds packets of TCP connections to frontends that no socket of this host has, and gives
// those that have to be redirected a priority. nftables redirects them, but cannot distinguish the socket of a connection from one that
// listens. It is a priority and not a mark, since rules of other programs would see a mark before KubeLB's rules.
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PACKET_HOST 0 // linux/if_packet.h

// UNKNOWN is the priority, which the nftables rules have, too.
#define UNKNOWN 0x6b756577

// The TTL of a redirected packet is 255 less the number of its redirects, see model.Redirect.
enum { FIRST_TTL = 255, MAX_REDIRECTS = 15 };

// A frontend. An IPv4 address is in the last word, and the other words are zero. All fields are in network byte order.
struct frontend {
	__u32 vip[4];
	__be16 port;
	__u8 family; // 4 or 6
	__u8 zero;
};

// The maximum number of redirects of packets to a frontend. Packets to other frontends are not redirected.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct frontend);
	__type(value, __u8);
	__uint(max_entries, 1 << 17);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} asks SEC(".maps");

struct packet {
	struct tcphdr tcp;
	struct bpf_sock_tuple tuple;
	struct frontend to;
	__u8 ttl;
};

// load copies bytes of the packet. The offset is from the start of the IP header.
static __always_inline int load(struct __sk_buff *skb, __u32 offset, void *into, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, offset, into, size, BPF_HDR_START_NET);
}

// opens returns whether the segment opens a connection. Such segments are never redirected.
static __always_inline int opens(const struct tcphdr *tcp) { return tcp->syn && !tcp->ack && !tcp->rst && !tcp->fin; }

// has_socket returns whether this host has a socket of the connection, or the segment completes a handshake by SYN cookie, for which there is no
// socket yet.
static __always_inline int has_socket(struct __sk_buff *skb, struct packet *p, __u32 tuple_size, void *ip, __u32 ip_size)
{
	struct bpf_sock *found = bpf_skc_lookup_tcp(skb, &p->tuple, tuple_size, BPF_F_CURRENT_NETNS, 0);
	int has;

	if (!found)
		return 0;
	has = found->state != BPF_TCP_LISTEN || !bpf_tcp_check_syncookie(found, ip, ip_size, &p->tcp, sizeof(p->tcp));
	bpf_sk_release(found);
	return has;
}

// decide sets the priority of a packet that has to be redirected. After the maximum number of redirects the packet is not redirected, and the host resets
// the connection.
static __always_inline int decide(struct __sk_buff *skb, struct packet *p, __u32 tuple_size, void *ip, __u32 ip_size)
{
	__u8 redirects = p->ttl >= FIRST_TTL - MAX_REDIRECTS ? FIRST_TTL - p->ttl : 0;
	__u8 *limit = bpf_map_lookup_elem(&asks, &p->to);

	if (limit && redirects < *limit && !has_socket(skb, p, tuple_size, ip, ip_size))
		skb->priority = UNKNOWN;
	return -1; // TC_ACT_UNSPEC: the next filter decides
}

// Each family has its own function, so that the verifier sees constant sizes.
static __noinline int decide_ipv4(struct __sk_buff *skb)
{
	struct packet p = {};
	struct iphdr ip;

	if (load(skb, 0, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP || ip.ihl < 5 || ip.frag_off & bpf_htons(0x3fff))
		return -1;
	if (load(skb, ip.ihl * 4, &p.tcp, sizeof(p.tcp)) || opens(&p.tcp))
		return -1;
	p.tuple.ipv4.saddr = ip.saddr;
	p.tuple.ipv4.daddr = p.to.vip[3] = ip.daddr;
	p.tuple.ipv4.sport = p.tcp.source;
	p.tuple.ipv4.dport = p.to.port = p.tcp.dest;
	p.to.family = 4;
	p.ttl = ip.ttl;
	return decide(skb, &p, sizeof(p.tuple.ipv4), &ip, sizeof(ip));
}

static __noinline int decide_ipv6(struct __sk_buff *skb)
{
	struct packet p = {};
	struct ipv6hdr ip;

	if (load(skb, 0, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_TCP)
		return -1;
	if (load(skb, sizeof(ip), &p.tcp, sizeof(p.tcp)) || opens(&p.tcp))
		return -1;
	__builtin_memcpy(p.tuple.ipv6.saddr, &ip.saddr, 16);
	__builtin_memcpy(p.tuple.ipv6.daddr, &ip.daddr, 16);
	__builtin_memcpy(p.to.vip, &ip.daddr, 16);
	p.tuple.ipv6.sport = p.tcp.source;
	p.tuple.ipv6.dport = p.to.port = p.tcp.dest;
	p.to.family = 6;
	p.ttl = ip.hop_limit;
	return decide(skb, &p, sizeof(p.tuple.ipv6), &ip, sizeof(ip));
}

SEC("tc")
int find_unknown(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return -1;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return decide_ipv4(skb);
	case bpf_htons(ETH_P_IPV6):
		return decide_ipv6(skb);
	}
	return -1;
}

char program_license[] SEC("license") = "Dual MIT/GPL";
