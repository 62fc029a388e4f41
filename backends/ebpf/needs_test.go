package ebpf

import (
	"os"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
)

func TestTheKernelIsAskedForEachNeed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("programs are loaded by root only")
	}
	for _, n := range kernelNeeds() {
		t.Logf("%s (Linux %s): %v", n.name, n.since, n.err)
		require.NotEmpty(t, n.since)
		require.NoError(t, n.err)
	}
	require.NoError(t, requireKernel())
	t.Logf("XDP programs take frames in pieces (5.18): %v; sweep uses hashes without preallocation (6.1): %v; tcx (6.6): %v", haveXDPFrags(), haveSleepableHashes(), haveTCX())
}

func TestWhatIsMissingIsSaidWithWhatToDo(t *testing.T) {
	err := lacking("5.10.0-46-cloud-amd64", []need{{"helper a", "5.11", link.ErrNotSupported}, {"helper b", "5.2", nil}, {"programs c", "5.14", link.ErrNotSupported}, {"helper d", "5.13", os.ErrPermission}})
	require.EqualError(t, err, "the eBPF backend does not work with this kernel, 5.10.0-46-cloud-amd64: it lacks helper a (Linux 5.11), programs c (Linux 5.14): use --backend=nftables or --backend=envoy here, or a newer kernel")
	require.NoError(t, lacking("6.1", []need{{"helper b", "5.2", nil}, {"helper d", "5.13", os.ErrPermission}}))
}
