//go:build ignore
// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The program at the ingress of interfaces (tcx), and the sweep of flows.
#include "balance.h"
#include "sweep.h"

// HEADERS is how much of a packet is looked at, at most but for IPv6 with extension headers.
#define HEADERS 134

SEC("tc")
int lb_tc(context *ctx)
{
	struct scratch *s = bpf_map_lookup_elem(&scratches, &(__u32){0});

	if (!s)
		return PASS;
	// Headers have to be in the first piece of the packet.
	if ((void *)(long)ctx->data + HEADERS > (void *)(long)ctx->data_end)
		bpf_skb_pull_data(ctx, ctx->len < HEADERS ? ctx->len : HEADERS);
	return handle(ctx, s);
}
