package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/tools/kernels"
)

func TestAFailureThatIsKnownIsNoSuccess(t *testing.T) {
	passed := kernels.Result{Backend: "ebpf", Case: "tcp-echo", Family: "IPv4", Outcome: conformance.Passed}
	failed := kernels.Result{Backend: "nftables", Case: "drain", Family: "IPv6", Outcome: conformance.Failed, Reason: "no answer\nsince noon", Date: "2026-11-01"}
	var out bytes.Buffer
	require.Equal(t, 1, report(&out, "6.12.9", kernels.Judged{Now: []kernels.Result{passed}, Before: []kernels.Result{passed, failed}}))
	require.Equal(t, `failed on 2026-11-01, and not judged again: nftables drain IPv6: no answer
Linux 6.12.9: 2 passed, 1 failed, 0 unsupported (2 of them in earlier runs)
`, out.String())
	require.Equal(t, 1, report(&out, "6.12.9", kernels.Judged{Now: []kernels.Result{failed}}))
	out.Reset()
	require.Zero(t, report(&out, "6.12.9", kernels.Judged{Before: []kernels.Result{passed}}))
	require.Equal(t, "Linux 6.12.9: 1 passed, 0 failed, 0 unsupported (1 of them in earlier runs)\n", out.String())
}
