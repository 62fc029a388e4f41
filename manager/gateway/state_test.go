package gateway

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/statefile/smalldisk"
)

// onDisk is a gateway whose host lacks nothing, with this state directory.
func onDisk(t *testing.T, dir string) *onHost {
	t.Helper()
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	h.options.Backend.Config.StateDir, h.host.options.Config.StateDir, h.holders.path = dir, dir, filepath.Join(dir, holdersFile)
	return h
}

func requireReady(t *testing.T, conditions []metav1.Condition) {
	t.Helper()
	ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionTrue, ready.Status, ready.Message)
}

func TestAGatewayWithAFullDiskStartsAndServes(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		first := onDisk(t, d.Dir)
		requireReady(t, first.conditions())
		before, err := first.holders.read()
		require.NoError(t, err)
		first.host.stop()

		d.KeepFull(t)
		for range 5 {
			again := onDisk(t, d.Dir)
			again.options.Backend.Config.Options, again.host.options.Config.Options = first.options.Backend.Config.Options, first.options.Backend.Config.Options
			conditions := again.conditions()
			requireReady(t, conditions)
			require.Nil(t, meta.FindStatusCondition(conditions, "HostStorage"), "what is noted already needs no room")
			again.host.stop()
		}

		other := onDisk(t, d.Dir) // its options are others
		conditions := other.conditions()
		requireReady(t, conditions)
		storage := meta.FindStatusCondition(conditions, "HostStorage")
		require.NotNil(t, storage)
		require.Contains(t, storage.Message, "backends.json")
		require.Contains(t, storage.Message, "no space left on device")
		after, err := other.holders.read()
		require.NoError(t, err)
		require.Equal(t, before, after)
	})
}

func TestWhatCouldNotBeNotedIsNotedWhenThereIsRoom(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		free := d.Fill(t)
		h := onDisk(t, d.Dir)
		require.NotNil(t, meta.FindStatusCondition(h.conditions(), "HostStorage"))
		free()
		h.holders.settle(h.options.Backend.name(), h.options.Backend.holder())
		require.Nil(t, meta.FindStatusCondition(h.conditions(), "HostStorage"))
		all, err := h.holders.read()
		require.NoError(t, err)
		require.Contains(t, all, h.options.Backend.name())
	})
}

func TestADamagedListOfBackendsIsMadeAnewAndNamed(t *testing.T) {
	for name, text := range map[string]string{"cut": "{\n  \"nft", "empty": "", "of another kind": "[]"} {
		t.Run(name, func(t *testing.T) {
			h := newOnHost(t)
			h.has(moduleFile)
			h.has(sysctlFile)
			file := filepath.Join(h.options.Backend.Config.StateDir, "backends.json")
			require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			for range 2 { // another process says so, too
				conditions := h.conditions()
				requireReady(t, conditions)
				storage := meta.FindStatusCondition(conditions, "HostStorage")
				require.NotNil(t, storage)
				require.Contains(t, storage.Message, file+".damaged")
				h.host.stop()
			}
			all, err := h.holders.read()
			require.NoError(t, err)
			require.Contains(t, all, h.options.Backend.name())
			require.NoError(t, os.Remove(file+".damaged"))
			h.host.stop()
			require.Nil(t, meta.FindStatusCondition(h.conditions(), "HostStorage"))
		})
	}
}
