package envoy

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// sticky is a frontend whose clients are remembered for a minute.
func sticky(protocol model.Protocol, pool model.PoolID) model.Frontend {
	f := frontend(protocol, "203.0.113.1", 80, pool)
	f.AffinityTimeout = time.Minute
	return f
}

// activePool has the endpoints 198.51.100.x.
func activePool(id model.PoolID, endpoints ...byte) model.Pool {
	p := model.Pool{ID: id, Tenant: "a"}
	for _, x := range endpoints {
		p.Endpoints = append(p.Endpoints, endpointAddress(x, model.Active))
	}
	return p
}

// questions are what clients ask, by Envoy.
type questions struct {
	*affinity
	t *testing.T
}

func ask(t *testing.T) questions {
	return questions{openAffinity(t.TempDir(), nil), t}
}

// met is the last byte of the endpoint that the n-th client gets, 0 if Envoy decides.
func (q questions) met(f model.Frontend, n byte, at time.Time) byte {
	q.t.Helper()
	endpoint, found := q.endpointFor(f.FrontendKey, netip.AddrFrom4([4]byte{192, 0, 2, n}), at)
	if !found {
		return 0
	}
	require.Equal(q.t, f.TargetPort, endpoint.Port())
	return endpoint.Addr().As4()[3]
}

// all is what every client gets.
func (q questions) all(f model.Frontend, at time.Time) (met []byte) {
	for n := range byte(100) {
		met = append(met, q.met(f, n, at))
	}
	return met
}

func TestAClientStaysWhateverJoinsAndWhateverPoolItIs(t *testing.T) {
	q := ask(t)
	f := sticky(model.TCP, "a/p")
	q.set(f, activePool("a/p", 11))
	before := q.all(f, after(0))
	q.set(f, activePool("a/p", 11, 12, 13))
	require.Equal(t, before, q.all(f, after(50)), "an endpoint joins")
	f.Pool = "a/q"
	q.set(f, activePool("a/q", 13, 12, 11))
	require.Equal(t, before, q.all(f, after(100)), "another pool: each connection begins the timeout anew")
	f.TargetPort = 31000
	q.set(f, activePool("a/q", 13, 12, 11))
	require.Equal(t, before, q.all(f, after(150)), "another port of the same endpoint")
	require.NotEqual(t, before, q.all(f, after(211)), "the timeout has passed")
}

func TestAClientMovesFromAnEndpointThatGetsNoNewFlows(t *testing.T) {
	for name, state := range map[string]model.EndpointState{"draining": model.Draining, "unhealthy": model.Unhealthy} {
		t.Run(name, func(t *testing.T) {
			q := ask(t)
			f, p := sticky(model.UDP, "a/p"), activePool("a/p", 11, 12)
			q.set(f, p)
			at := q.met(f, 1, after(0))
			p.Endpoints[at-11].State = state
			q.set(f, p)
			other := q.met(f, 1, after(1))
			require.EqualValues(t, 23-at, other)
			p.Endpoints[at-11].State = model.Active
			q.set(f, p)
			require.Equal(t, other, q.met(f, 1, after(2)), "it has moved, and stays")
		})
	}
}

func TestClientsAreForgottenWithTheirFrontend(t *testing.T) {
	f, p := sticky(model.TCP, "a/p"), activePool("a/p", 11, 12, 13)
	other, none := f, f
	other.Tenant, none.AffinityTimeout = "b", 0
	for name, meanwhile := range map[string]map[model.FrontendKey]model.Frontend{
		"it goes": {}, "it is another tenant's": {f.FrontendKey: other}, "its affinity is switched off": {f.FrontendKey: none}} {
		t.Run(name, func(t *testing.T) {
			q := ask(t)
			q.set(f, activePool("a/p", 11))
			before := q.all(f, after(0))
			q.forget(map[model.FrontendKey]model.Frontend{f.FrontendKey: f}, meanwhile)
			for _, m := range meanwhile {
				q.set(m, p)
			}
			q.set(f, p)
			require.NotEqual(t, before, q.all(f, after(1)))
		})
	}
	q := ask(t)
	q.set(f, activePool("a/p", 11))
	before := q.all(f, after(0))
	q.set(other, p)
	require.NotEqual(t, before, q.all(other, after(1)), "not even before they are forgotten another tenant's clients meet their endpoints")
}

func TestEnvoyDecidesWhereNothingIsKnown(t *testing.T) {
	q := ask(t)
	f := sticky(model.TCP, "a/p")
	require.Zero(t, q.met(f, 1, after(0)), "no such frontend")
	q.set(f, activePool("a/p"))
	require.Zero(t, q.met(f, 1, after(0)), "no endpoints")
	plain := f
	plain.AffinityTimeout = 0
	q.set(plain, activePool("a/p", 11))
	require.Zero(t, q.met(f, 1, after(0)), "no affinity")
	require.Empty(t, q.v4.places, "nobody is remembered")
}

// While Envoy is told of another pool it may have the former one or the new one.
func TestWhileEnvoyIsToldOfAPoolClientsGetEndpointsThatItHasInAnyCase(t *testing.T) {
	q := ask(t)
	f := sticky(model.TCP, "a/p")
	q.set(f, activePool("a/p", 11, 12))
	next := activePool("a/p", 12, 13)
	q.narrow(f, next)
	for n := range byte(100) {
		require.EqualValues(t, 12, q.met(f, n, after(0)))
	}
	q.set(f, next)
	require.EqualValues(t, 12, q.met(f, 1, after(1)))
	met := q.all(f, after(100))
	require.Contains(t, met, byte(13))
	q.narrow(f, activePool("a/p", 14))
	require.Zero(t, q.met(f, 1, after(101)), "none in common: Envoy decides, and nothing is remembered")
	other := f
	other.Tenant = "b"
	q.narrow(other, next)
	require.Zero(t, q.met(other, 1, after(101)), "what another tenant had is nobody's")
}

func TestConnectionsThatAClientOpensAtOnceMeetOneEndpoint(t *testing.T) {
	q := ask(t)
	f := sticky(model.TCP, "a/p")
	for round := range 20 {
		q.set(f, activePool("a/p", byte(11+round%2)))
		var all sync.WaitGroup
		met := make([]byte, 40)
		for i := range met {
			all.Go(func() {
				if i == 20 {
					q.set(f, activePool("a/p", 11, 12, 13, 14))
				}
				met[i] = q.met(f, byte(round), after(round))
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
	m := newMaglev(p.Endpoints, 80, maglevSmall)
	for _, row := range m.rows {
		rows[m.endpoints[row].As4()[3]]++
	}
	for x, share := range map[byte]int{11: 1, 12: 2, 13: 5} {
		require.InDelta(t, maglevSmall*share/8, rows[x], 3, "endpoint %d", x)
	}
}
