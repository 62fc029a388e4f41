//go:build ignore
// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The XDP program, which runs at an interface's driver.
#define LB_XDP
#include "balance.h"

SEC("xdp.frags")
int lb_xdp(context *ctx)
{
	struct scratch *s = bpf_map_lookup_elem(&scratches, &(__u32){0});

	return s ? handle(ctx, s) : PASS;
}
