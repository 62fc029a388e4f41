package ebpf

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

func TestNoProgramRunsAfterAPurge(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		k := b.backend.kernel
		require.Equal(b, 4, b.programs(), "one by tcx or clsact and one by XDP at each of two interfaces")
		// Like a process that has not ended yet. It also keeps the kernel from detaching the programs by itself.
		pins, err := filepath.Glob(filepath.Join(k.dir, "*-[0-9]*"))
		require.NoError(b, err)
		require.Len(b, pins, 4)
		for _, pin := range pins {
			if strings.HasPrefix(filepath.Base(pin), "clsact") {
				continue
			}
			held, err := link.LoadPinnedLink(pin, nil)
			require.NoError(b, err)
			defer held.Close()
		}
		require.NoError(b, b.backend.Close(b.Context(), true))
		require.Zero(b, b.programs())
	})
}

// programs returns the number of programs at the gateway's two interfaces.
func (b *testGateway) programs() (n int) {
	for _, name := range []string{b.front.Name, b.back.Name} {
		l, err := netlink.LinkByName(name)
		require.NoError(b, err)
		if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
			n++
		}
		n += len(b.filters(l.Attrs()))
		if checkTCX() != nil {
			continue
		}
		tcx, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
		require.NoError(b, err)
		n += len(tcx.Programs)
	}
	return n
}
