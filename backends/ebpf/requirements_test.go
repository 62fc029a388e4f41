package ebpf

import (
	"os"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
)

func TestTheKernelHasAllRequirements(t *testing.T) {
	needRoot(t)
	for _, n := range kernelRequirements() {
		t.Logf("%s (Linux %s): %v", n.name, n.since, n.err)
		require.NotEmpty(t, n.since)
		require.NoError(t, n.err)
	}
	require.NoError(t, checkKernel())
	t.Logf("XDP programs take frames in pieces (5.18): %v; sweep uses hashes without preallocation (6.1): %v; tcx (6.6): %v", checkXDPFrags(), checkSleepableHashes(), checkTCX())
}

func TestMissingRequirementsAreNamed(t *testing.T) {
	err := missingError("5.10.0-46-cloud-amd64", []requirement{{name: "helper a", since: "5.11", err: link.ErrNotSupported}, {name: "helper b", since: "5.2", err: nil}, {name: "programs c", since: "5.14", err: link.ErrNotSupported}, {name: "helper d", since: "5.13", err: os.ErrPermission}})
	require.EqualError(t, err, "the eBPF dataplane does not work with kernel 5.10.0-46-cloud-amd64, which lacks helper a (Linux 5.11), programs c (Linux 5.14): boot a newer kernel, or use --backend=nftables or --backend=envoy: 'kubelb-manager preflight --backend=NAME' checks whether this kernel has what they need")
	require.NoError(t, missingError("6.1", []requirement{{name: "helper b", since: "5.2", err: nil}, {name: "helper d", since: "5.13", err: os.ErrPermission}}))
}
