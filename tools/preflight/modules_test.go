package preflight

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnUnloadedModuleIsLoadedAgainWhenTheTestEnds(t *testing.T) {
	var loaded []string
	m := kernelModules{filepath.Join(t.TempDir(), "modprobe"), func(module string) error {
		if module == "built_in" {
			return errors.New("is built in")
		}
		return nil
	}, func(module string) error {
		loaded = append(loaded, module)
		return nil
	}}
	require.NoError(t, os.WriteFile(m.autoload, []byte("/sbin/modprobe\n"), 0o600))
	autoload := func() string {
		text, err := os.ReadFile(m.autoload)
		require.NoError(t, err)
		return string(text)
	}
	t.Run("ends early", func(t *testing.T) {
		require.False(t, m.unload(t, "built_in"))
		require.Equal(t, "/sbin/modprobe\n", autoload())
		require.True(t, m.unload(t, "nft_ct"))
		require.Equal(t, "/nowhere", autoload())
	})
	require.Equal(t, "/sbin/modprobe\n", autoload())
	require.Equal(t, []string{"nft_ct"}, loaded)
}

func TestOnlyEBPFWithTCXNeedsNoModule(t *testing.T) {
	const there = "ok       Kernel      tcx                it is there\n"
	require.True(t, needsNoModule("ebpf", there))
	require.False(t, needsNoModule("ebpf", "ok       Kernel      tcx                this kernel does not have it (Linux 6.6): filters of clsact take its place\n"))
	require.False(t, needsNoModule("nftables", there))
	require.False(t, needsNoModule("envoy", ""))
}

func TestRefusalsRunOnePreflightPerDataplane(t *testing.T) {
	const refusal = "MISSING  Kernel       BPF programs of type syscall             this kernel does not have it"
	calls := map[string]int{}
	require.Equal(t, map[string]string{"ebpf": refusal}, refusals([]string{"nftables", "ebpf", "envoy"}, func(backend string) string {
		calls[backend]++
		return map[string]string{
			"nftables": "MISSING  Interfaces   interface eth0                           is down\n",
			"ebpf":     "ok       Kernel       kernel                                   Linux 5.10.0\n" + refusal + "\n",
			"envoy":    "LIMITED  Kernel       program for unknown connections          this kernel does not have it\n",
		}[backend]
	}), "a command brings the interface up, and Envoy works without its program")
	require.Equal(t, map[string]int{"nftables": 1, "ebpf": 1, "envoy": 1}, calls)
}
