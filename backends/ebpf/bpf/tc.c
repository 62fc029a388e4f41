//go:build ignore
// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The tc program, which runs at the ingress of interfaces (tcx or clsact), and the sweep of flows.
#include "balance.h"
#include "sweep.h"

SEC("tc")
int lb_tc(context *ctx)
{
	struct scratch *s = bpf_map_lookup_elem(&scratches, &(__u32){0});

	return s ? handle(ctx, s) : PASS;
}
