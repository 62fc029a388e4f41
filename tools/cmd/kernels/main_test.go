package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/tools/kernels"
)

func TestAFailureOfAnEarlierRunCounts(t *testing.T) {
	passed := kernels.Result{Backend: "ebpf", Case: "tcp-echo", Family: "IPv4", Outcome: conformance.Passed}
	failed := kernels.Result{Backend: "nftables", Case: "drain", Family: "IPv6", Outcome: conformance.Failed, Reason: "no answer\nsince noon", Date: "2026-11-01"}
	var out bytes.Buffer
	require.Equal(t, 1, report(&out, "6.12.9", kernels.Results{Current: []kernels.Result{passed}, Earlier: []kernels.Result{passed, failed}}))
	require.Equal(t, `failed on 2026-11-01, and not tested again: nftables drain IPv6: no answer
Linux 6.12.9: 2 passed, 1 failed, 0 unsupported (2 of them in earlier runs)
`, out.String())
	require.Equal(t, 1, report(&out, "6.12.9", kernels.Results{Current: []kernels.Result{failed}}))
	out.Reset()
	require.Zero(t, report(&out, "6.12.9", kernels.Results{Earlier: []kernels.Result{passed}}))
	require.Equal(t, "Linux 6.12.9: 1 passed, 0 failed, 0 unsupported (1 of them in earlier runs)\n", out.String())
}

func TestUnknownDataplanesAndCasesAreRefusedBeforeAKernelIsFetched(t *testing.T) {
	programs := t.TempDir()
	for _, arch := range []string{runtime.GOARCH, "arm64"} {
		require.NoError(t, os.MkdirAll(filepath.Join(programs, arch), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(programs, arch, "kubelb-backend-ebpf"), nil, 0o755))
	}
	// The cache is a file, so that fetching a kernel would fail with another error.
	t.Setenv("KUBELB_CACHE", filepath.Join(programs, runtime.GOARCH, "kubelb-backend-ebpf"))
	for _, kernel := range []string{"6.12/arm64", running} {
		for _, c := range []struct{ backend, cases, want string }{
			{"ebfp", "tcp-echo", `there is no dataplane "ebfp"; known are ebpf`},
			{"ebpf", "tcp-ehco,preflight,packet-fixtures", `there is no case "tcp-ehco"; known are preflight, packet-fixtures, tcp-echo, `},
		} {
			var out bytes.Buffer
			_, err := run(t.Context(), []string{"--kernel=" + kernel, "--programs=" + programs, "--backend=" + c.backend, "--case=" + c.cases}, &out, &out)
			require.ErrorContains(t, err, c.want, kernel)
			require.Empty(t, out.String())
		}
	}
	_, err := run(t.Context(), []string{"--kernel=6.12/arm64", "--programs=" + programs, "--backend=ebpf", "--case=tcp-echo"}, &bytes.Buffer{}, &bytes.Buffer{})
	require.ErrorContains(t, err, "not a directory", "valid arguments lead to fetching the kernel")
}
