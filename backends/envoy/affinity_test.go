package envoy

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// sticky returns a frontend with an affinity timeout of a minute.
func sticky(protocol model.Protocol, pool model.PoolID) model.Frontend {
	f := frontend(protocol, "203.0.113.1", 80, pool)
	f.AffinityTimeout = time.Minute
	return f
}

// activePool returns a pool with the endpoints 198.51.100.x.
func activePool(id model.PoolID, endpoints ...byte) model.Pool {
	p := model.Pool{ID: id, Tenant: "a"}
	for _, x := range endpoints {
		p.Endpoints = append(p.Endpoints, endpointAddress(x, model.Active))
	}
	return p
}

// affinityTest asks for endpoints, as Envoy does.
type affinityTest struct {
	*affinity
	t *testing.T
}

func newAffinityTest(t *testing.T) affinityTest {
	a := openAffinity(t.TempDir(), nil)
	t.Cleanup(func() { require.NoError(t, a.close()) })
	return affinityTest{a, t}
}

// endpointOf returns the last byte of the address of the n-th client's endpoint, 0 if there is no answer.
func (a affinityTest) endpointOf(f model.Frontend, n byte, at time.Time) byte {
	a.t.Helper()
	endpoint, found := a.endpointFor(f.FrontendKey, netip.AddrFrom4([4]byte{192, 0, 2, n}), at)
	if !found {
		return 0
	}
	require.Equal(a.t, f.TargetPort, endpoint.Port())
	return endpoint.Addr().As4()[3]
}

// endpointsOfAll returns the endpoints of 100 clients.
func (a affinityTest) endpointsOfAll(f model.Frontend, at time.Time) (met []byte) {
	for n := range byte(100) {
		met = append(met, a.endpointOf(f, n, at))
	}
	return met
}

func TestAClientKeepsItsEndpointWhenEndpointsJoinOrThePoolChanges(t *testing.T) {
	a := newAffinityTest(t)
	f := sticky(model.TCP, "a/p")
	a.setEndpoints(f, activePool("a/p", 11))
	before := a.endpointsOfAll(f, after(0))
	a.setEndpoints(f, activePool("a/p", 11, 12, 13))
	require.Equal(t, before, a.endpointsOfAll(f, after(50)), "an endpoint joins")
	f.Pool = "a/a"
	a.setEndpoints(f, activePool("a/a", 13, 12, 11))
	require.Equal(t, before, a.endpointsOfAll(f, after(100)), "another pool; each connection starts the timeout again")
	f.TargetPort = 31000
	a.setEndpoints(f, activePool("a/a", 13, 12, 11))
	require.Equal(t, before, a.endpointsOfAll(f, after(150)), "another port of the same endpoint")
	require.NotEqual(t, before, a.endpointsOfAll(f, after(211)), "the timeout has passed")
}

func TestAClientMovesFromAnEndpointThatGetsNoNewFlows(t *testing.T) {
	for name, state := range map[string]model.EndpointState{"draining": model.Draining, "unhealthy": model.Unhealthy} {
		t.Run(name, func(t *testing.T) {
			a := newAffinityTest(t)
			f, p := sticky(model.UDP, "a/p"), activePool("a/p", 11, 12)
			a.setEndpoints(f, p)
			at := a.endpointOf(f, 1, after(0))
			p.Endpoints[at-11].State = state
			a.setEndpoints(f, p)
			other := a.endpointOf(f, 1, after(1))
			require.EqualValues(t, 23-at, other)
			p.Endpoints[at-11].State = model.Active
			a.setEndpoints(f, p)
			require.Equal(t, other, a.endpointOf(f, 1, after(2)), "it stays with its new endpoint")
		})
	}
}

func TestClientsAreDeletedWithTheirFrontend(t *testing.T) {
	f, p := sticky(model.TCP, "a/p"), activePool("a/p", 11, 12, 13)
	other, none := f, f
	other.Tenant, none.AffinityTimeout = "b", 0
	for name, successors := range map[string]map[model.FrontendKey]model.Frontend{
		"it goes": {}, "it is another tenant's": {f.FrontendKey: other}, "its affinity is switched off": {f.FrontendKey: none}} {
		t.Run(name, func(t *testing.T) {
			a := newAffinityTest(t)
			a.setEndpoints(f, activePool("a/p", 11))
			before := a.endpointsOfAll(f, after(0))
			a.deleteClients(map[model.FrontendKey]model.Frontend{f.FrontendKey: f}, successors)
			for _, m := range successors {
				a.setEndpoints(m, p)
			}
			a.setEndpoints(f, p)
			require.NotEqual(t, before, a.endpointsOfAll(f, after(1)))
		})
	}
	a := newAffinityTest(t)
	a.setEndpoints(f, activePool("a/p", 11))
	before := a.endpointsOfAll(f, after(0))
	a.setEndpoints(other, p)
	require.NotEqual(t, before, a.endpointsOfAll(other, after(1)), "clients of another tenant do not get the endpoints, even before the former clients are deleted")
}

func TestWithoutAffinityOrEndpointsThereIsNoAnswer(t *testing.T) {
	a := newAffinityTest(t)
	f := sticky(model.TCP, "a/p")
	require.Zero(t, a.endpointOf(f, 1, after(0)), "no such frontend")
	a.setEndpoints(f, activePool("a/p"))
	require.Zero(t, a.endpointOf(f, 1, after(0)), "no endpoints")
	plain := f
	plain.AffinityTimeout = 0
	a.setEndpoints(plain, activePool("a/p", 11))
	require.Zero(t, a.endpointOf(f, 1, after(0)), "no affinity")
	require.Empty(t, a.v4.slots, "no client is stored")
}

// Until Envoy has accepted another pool, it may have the former endpoints or the new ones.
func TestWhileEnvoyAppliesAPoolClientsGetEndpointsThatAreInBothPools(t *testing.T) {
	a := newAffinityTest(t)
	f := sticky(model.TCP, "a/p")
	a.setEndpoints(f, activePool("a/p", 11, 12))
	next := activePool("a/p", 12, 13)
	a.restrictEndpoints(f, next)
	for n := range byte(100) {
		require.EqualValues(t, 12, a.endpointOf(f, n, after(0)))
	}
	a.setEndpoints(f, next)
	require.EqualValues(t, 12, a.endpointOf(f, 1, after(1)))
	met := a.endpointsOfAll(f, after(100))
	require.Contains(t, met, byte(13))
	a.restrictEndpoints(f, activePool("a/p", 14))
	require.Zero(t, a.endpointOf(f, 1, after(101)), "no endpoint is in both pools")
	other := f
	other.Tenant = "b"
	a.restrictEndpoints(other, next)
	require.Zero(t, a.endpointOf(other, 1, after(101)), "another tenant had the former endpoints")
}

func TestConcurrentConnectionsOfAClientGetOneEndpoint(t *testing.T) {
	a := newAffinityTest(t)
	f := sticky(model.TCP, "a/p")
	for round := range 20 {
		a.setEndpoints(f, activePool("a/p", byte(11+round%2)))
		var all sync.WaitGroup
		met := make([]byte, 40)
		for i := range met {
			all.Go(func() {
				if i == 20 {
					a.setEndpoints(f, activePool("a/p", 11, 12, 13, 14))
				}
				met[i] = a.endpointOf(f, byte(round), after(round))
			})
		}
		all.Wait()
		for _, m := range met {
			require.Equal(t, met[0], m, "round %d: %v", round, met)
		}
	}
}

func TestMaglevGivesEachEndpointItsShare(t *testing.T) {
	p := activePool("a/p", 11, 12, 13)
	p.Endpoints[0].Weight, p.Endpoints[1].Weight, p.Endpoints[2].Weight = 1, 2, 5
	rows := map[byte]int{}
	m := newMaglev(p.Endpoints, maglevSmall)
	for _, row := range m.rows {
		rows[m.endpoints[row].As4()[3]]++
	}
	for x, share := range map[byte]int{11: 1, 12: 2, 13: 5} {
		require.InDelta(t, maglevSmall*share/8, rows[x], 3, "endpoint %d", x)
	}
}

// A tenant with many clients, or forged ones, does not evict other tenants' clients.
func TestATenantsClientsAreNotEvictedForThoseOfAnother(t *testing.T) {
	a := affinityTest{&affinity{frontends: map[model.FrontendKey]*affinityFrontend{}, v4: newClientTable(300), v6: newClientTable(300)}, t}
	many, few, late := sticky(model.UDP, "b/p"), sticky(model.TCP, "a/p"), sticky(model.TCP, "c/p")
	many.Tenant, few.Tenant, late.Tenant, late.Port = "b", "a", "c", 81
	ask := func(f model.Frontend, network byte, clients int, at time.Time) {
		t.Helper()
		for n := range clients {
			_, found := a.endpointFor(f.FrontendKey, netip.AddrFrom4([4]byte{10, network, byte(n >> 8), byte(n)}), at)
			require.True(t, found)
		}
	}
	keeps := func(f model.Frontend, endpoint byte, at time.Time) {
		t.Helper()
		a.setEndpoints(f, activePool(f.Pool, endpoint, endpoint+1, endpoint+2))
		for n, met := range a.endpointsOfAll(f, at) {
			require.Equal(t, endpoint, met, "client %d was evicted", n)
		}
	}
	a.setEndpoints(many, activePool("b/p", 21, 22))
	a.setEndpoints(few, activePool("a/p", 11))
	a.endpointsOfAll(few, after(0))
	ask(many, 0, 2000, after(1))
	keeps(few, 11, after(2))
	// A new tenant gets its share from the tenant with the most clients.
	a.setEndpoints(late, activePool("c/p", 31))
	a.endpointsOfAll(late, after(3))
	ask(many, 0, 2000, after(3))
	keeps(late, 31, after(4))
	a.setEndpoints(few, activePool("a/p", 11))
	ask(few, 1, 250, after(5))
	keeps(late, 31, after(6))
	require.Len(t, a.v4.slots, 300)
}
