package envoy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/shares"
	"kubelb.k8c.io/core/model"
)

func TestOneTenantDoesNotFillEnvoysMemory(t *testing.T) {
	b := &Backend{state: newStore(t.TempDir() + "/state"), memoryKB: 100 << 10}
	endpoints := func(tenant string, n int) model.Pool {
		p := model.Pool{ID: model.PoolID(tenant + "/p"), Tenant: tenant}
		for i := range n {
			a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			p.Endpoints = append(p.Endpoints, model.Endpoint{ID: a.String(), Address: a, Weight: 1})
		}
		return p
	}
	serve := func(tenant string, port int) error {
		f := model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: uint16(port)}, Tenant: tenant, Pool: model.PoolID(tenant + "/p"), TargetPort: 30080}
		a := newApply(b, dataplane.Change{})
		err := a.replaceFrontend(f)
		if err == nil {
			b.state.setFrontend(f)
		}
		return err
	}
	take := func(p model.Pool) error {
		err := newApply(b, dataplane.Change{}).replacePool(p)
		if err == nil {
			b.state.setPool(p)
		}
		return err
	}
	require.NoError(t, take(endpoints("hostile", 1000)))
	n := 0
	for ; serve("hostile", 1000+n) == nil; n++ {
		require.Less(t, n, 100)
	}
	require.Equal(t, 75*1024/2337, n, "one tenant may use three quarters")
	require.ErrorContains(t, serve("hostile", 2000), fmt.Sprintf("tenant hostile would have %d kB of Envoy's memory", 2337*(n+1)))
	require.NoError(t, serve("hostile", 1000), "an existing frontend can be applied again")
	require.ErrorContains(t, take(endpoints("hostile", 1500)), "raise its memory limit, or --backend-option memory-mib")
	require.NoError(t, take(endpoints("a", 100)))
	for i := range 25 * 1024 / 357 {
		require.NoError(t, serve("a", 3000+i), "another tenant may use the last quarter")
	}
	require.NoError(t, take(endpoints("hostile", 10)), "fewer endpoints")
	require.NoError(t, serve("hostile", 2000), "fewer endpoints allow more ports")
	require.Equal(t, shares.Usage{(n + 1) * 87}, b.shares().Usage("hostile"))
}

func TestMemoryOfAFrontendIncludesAffinity(t *testing.T) {
	f := frontend(model.TCP, "203.0.113.1", 80, "a/p")
	for endpoints, more := range map[int]int{3: 13, 10: 14, 11: 145, 1000: 343} {
		plain := f
		plain.AffinityTimeout = 0
		f.AffinityTimeout = time.Hour
		require.InDelta(t, more, memoryOf(f, endpoints)-memoryOf(plain, endpoints), 1, "%d endpoints", endpoints)
	}
}

func TestTheDefaultMemoryIsAThirdOfTheAvailableMemory(t *testing.T) {
	all, err := settings{}.memory()
	require.NoError(t, err)
	require.Greater(t, all, 0)
	set, err := settings{memoryMiB: 512}.memory()
	require.NoError(t, err)
	require.Equal(t, 512<<10, set)
}
