package ebpf

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// largeSnapshot returns a model of frontends on VIPs with ten ports each, which share pools.
func largeSnapshot(frontends, pools, endpoints int) (s model.Snapshot) {
	for p := range pools {
		pool := model.Pool{ID: model.PoolID(fmt.Sprintf("t%d/nodes", p)), Tenant: fmt.Sprintf("t%d", p)}
		for e := range endpoints {
			pool.Endpoints = append(pool.Endpoints, model.Endpoint{ID: fmt.Sprintf("node-%d", e), Address: netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + e)}), Weight: 1})
		}
		s.Pools = append(s.Pools, pool)
	}
	for f := range frontends {
		vip := netip.AddrFrom4([4]byte{100, 64 + byte(f/10>>16), byte(f / 10 >> 8), byte(f / 10)})
		tenant := fmt.Sprintf("t%d", f/10%pools)
		s.Frontends = append(s.Frontends, model.Frontend{FrontendKey: model.FrontendKey{VIP: vip, Protocol: model.TCP, Port: uint16(80 + f%10)},
			Owner: model.ObjectName{Namespace: "tenant-" + tenant, Name: fmt.Sprintf("s%d", f)}, Tenant: tenant, Pool: model.PoolID(tenant + "/nodes"), TargetPort: uint16(30000 + f%2768)})
	}
	return s
}

// difference applies the snapshot, and returns how long that took.
func (b *testGateway) difference(s model.Snapshot) time.Duration {
	held, err := b.backend.Applied(b.Context())
	require.NoError(b, err)
	change := dataplane.Change{Base: held.Generation, Next: dataplane.Generation{Epoch: "test", Number: held.Generation.Number + 1}, Delta: model.Difference(held.Digests, s)}
	begun := time.Now()
	result, err := b.backend.Apply(b.Context(), change)
	took := time.Since(begun)
	require.NoError(b, err)
	require.Empty(b, result.Failed)
	return took
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// TestMeasureLoad measures how long up to 50,000 frontends with 100 pools take, and one more change.
func TestMeasureLoad(t *testing.T) {
	if os.Getenv("KUBELB_MEASURE") == "" {
		t.Skip("set KUBELB_MEASURE=1")
	}
	for _, n := range []int{10, 1_000, 10_000, 50_000} {
		onGateway(t, func(b *testGateway) {
			before := memory()
			s := largeSnapshot(n, min(n, 100), 10)
			load := b.difference(s)
			var frontend, pool, adopt []time.Duration
			for i := range 21 {
				s.Frontends[i%n].TargetPort++
				frontend = append(frontend, b.difference(s))
				s.Pools[i%len(s.Pools)].Endpoints[0].State = model.Unhealthy - s.Pools[i%len(s.Pools)].Endpoints[0].State
				pool = append(pool, b.difference(s))
			}
			begun := time.Now()
			_, err := b.backend.kernel.adopt()
			require.NoError(b, err)
			adopt = append(adopt, time.Since(begun))
			t.Logf("%6d frontends: load %v; a changed frontend %v, a changed pool %v; taken over in %v; plugin's heap %d MB, maps in the kernel %d MB", n, load, median(frontend), median(pool), median(adopt), (memory()-before)>>20, b.mapMemory()>>20)
		})
	}
}

func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// mapMemory returns the memory of the pinned maps and of the tables of pools, as the kernel reports it.
func (b *testGateway) mapMemory() (sum uint64) {
	pins, err := filepath.Glob(filepath.Join(b.backend.kernel.dir, "*"))
	require.NoError(b, err)
	add := func(m *ebpf.Map, err error) {
		require.NoError(b, err)
		defer m.Close()
		info, err := m.Info()
		require.NoError(b, err)
		bytes, _ := info.Memlock() // not set for a map without elements
		sum += bytes
	}
	for _, pin := range pins {
		if m, err := ebpf.LoadPinnedMap(pin, nil); err == nil { // the others are links
			add(m, nil)
		}
	}
	var pool uint32
	var table ebpf.MapID
	for entries := b.backend.kernel.objects.Pools.Iterate(); entries.Next(&pool, &table); {
		add(ebpf.NewMapFromID(table))
	}
	return sum
}
