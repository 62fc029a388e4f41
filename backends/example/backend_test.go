package example

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
	"kubelb.k8c.io/core/model"
)

// onHost calls f in a network namespace with a loopback interface. f has to use assert.
func onHost(t *testing.T, f func(h *host)) {
	preflighttest.InNetworkNamespace(t, func() {
		lo, err := netlink.LinkByName("lo")
		if assert.NoError(t, err) && assert.NoError(t, netlink.LinkSetUp(lo)) {
			f(&host{t, New(), lo})
		}
	})
}

type host struct {
	*testing.T
	*Backend
	lo netlink.Link
}

// apply applies a change and returns why records were refused.
func (h *host) apply(d model.Delta) (refused []string) {
	h.Helper()
	result, err := h.Apply(h.Context(), dataplane.Change{Delta: d})
	assert.NoError(h, err)
	assert.EqualValues(h, d.Len()-len(result.Failed), result.Operations)
	for _, f := range result.Failed {
		refused = append(refused, f.Record()+": "+f.Message)
	}
	return refused
}

// addresses returns the addresses of lo that do not belong to the host.
func (h *host) addresses() (out []string) {
	all, err := netlink.AddrList(h.lo, netlink.FAMILY_ALL)
	assert.NoError(h, err)
	for _, a := range all {
		if !a.IP.IsLoopback() {
			out = append(out, a.IPNet.String())
		}
	}
	return out
}

func record(vip string, port uint16, pool model.PoolID) model.Frontend {
	return model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr(vip), Protocol: model.TCP, Port: port},
		Owner: model.ObjectName{Namespace: "tenant-t", Name: "web"}, Tenant: "t", Pool: pool, TargetPort: 30080}
}

func poolRecord(id model.PoolID, endpoints ...model.Endpoint) model.Pool {
	return model.Pool{ID: id, Tenant: id.Tenant(), Endpoints: endpoints}
}

func TestAVIPIsAnAddressOfTheHostWhileItHasAFrontend(t *testing.T) {
	onHost(t, func(h *host) {
		four, other, six := record("203.0.113.1", 80, "t/p"), record("203.0.113.1", 81, "t/p"), record("2001:db8:f::1", 80, "t/six")
		assert.Empty(t, h.apply(model.Delta{UpsertPools: []model.Pool{poolRecord("t/p", active(11)...), poolRecord("t/six")}, UpsertFrontends: []model.Frontend{four, other, six}}))
		assert.ElementsMatch(t, []string{"203.0.113.1/32", "2001:db8:f::1/128"}, h.addresses())
		assert.NotNil(t, h.frontends[four.FrontendKey].listener)
		h.apply(model.Delta{DeleteFrontends: []model.FrontendKey{four.FrontendKey, six.FrontendKey}})
		assert.Equal(t, []string{"203.0.113.1/32"}, h.addresses(), "another frontend has it")
		h.apply(model.Delta{DeleteFrontends: []model.FrontendKey{other.FrontendKey}})
		assert.Empty(t, h.addresses())
	})
}

func TestAddressesOfTheHostAreKept(t *testing.T) {
	onHost(t, func(h *host) {
		theirs, err := netlink.ParseAddr("198.51.100.7/32")
		assert.NoError(t, err)
		assert.NoError(t, netlink.AddrAdd(h.lo, theirs))
		h.apply(model.Delta{UpsertPools: []model.Pool{poolRecord("t/p")}, UpsertFrontends: []model.Frontend{record("203.0.113.1", 80, "t/p")}})
		assert.NoError(t, h.Close(t.Context(), true))
		assert.Equal(t, []string{"198.51.100.7/32"}, h.addresses())
	})
}

func TestOnlyAPurgeRemovesFrontends(t *testing.T) {
	onHost(t, func(h *host) {
		h.apply(model.Delta{UpsertPools: []model.Pool{poolRecord("t/p", active(11)...)}, UpsertFrontends: []model.Frontend{record("203.0.113.1", 80, "t/p")}})
		assert.NoError(t, h.Close(t.Context(), false))
		assert.Equal(t, []string{"203.0.113.1/32"}, h.addresses())
		assert.Len(t, h.frontends, 1)
		assert.NoError(t, h.Close(t.Context(), true))
		assert.Empty(t, h.addresses())
		assert.Empty(t, h.frontends)
	})
}

func TestTheDigestsAreThoseOfTheRecordsThatWereNotRefused(t *testing.T) {
	onHost(t, func(h *host) {
		p, good, bad := poolRecord("t/p", active(11)...), record("203.0.113.1", 80, "t/p"), record("203.0.113.2", 80, "t/unknown")
		assert.Equal(t, []string{"frontend TCP 203.0.113.2:80: pool t/unknown does not exist in this dataplane"},
			h.apply(model.Delta{UpsertPools: []model.Pool{p}, UpsertFrontends: []model.Frontend{bad, good}}))
		held, err := h.Applied(t.Context())
		assert.NoError(t, err)
		assert.Equal(t, model.Snapshot{Pools: []model.Pool{p}, Frontends: []model.Frontend{good}}.Digests(), held.Digests)
		result, err := h.Apply(t.Context(), dataplane.Change{Delta: model.Delta{DeleteFrontends: []model.FrontendKey{good.FrontendKey, bad.FrontendKey}, DeletePools: []model.PoolID{"t/p", "t/none"}}})
		assert.NoError(t, err)
		assert.EqualValues(t, 2, result.Operations, "two of the records do not exist")
		held, err = h.Applied(t.Context())
		assert.NoError(t, err)
		assert.Equal(t, model.NewDigests(), held.Digests, "to delete a record that does not exist is no error")
	})
}

func TestAFrontendFollowsItsPool(t *testing.T) {
	onHost(t, func(h *host) {
		f := record("203.0.113.1", 80, "t/p")
		listens := func() bool { return h.frontends[f.FrontendKey].listener != nil }
		h.apply(model.Delta{UpsertPools: []model.Pool{poolRecord("t/p"), poolRecord("t/q", active(11)...)}, UpsertFrontends: []model.Frontend{f}})
		assert.False(t, listens(), "the pool is empty")
		h.apply(model.Delta{UpsertPools: []model.Pool{poolRecord("t/p", active(11)...)}})
		assert.True(t, listens())
		h.apply(model.Delta{UpsertPools: []model.Pool{poolRecord("t/p")}})
		assert.False(t, listens())
		f.Pool = "t/q"
		h.apply(model.Delta{UpsertFrontends: []model.Frontend{f}})
		assert.True(t, listens(), "it has another pool")
		f.TargetPort = 30081
		before := h.frontends[f.FrontendKey]
		h.apply(model.Delta{UpsertFrontends: []model.Frontend{f}})
		assert.Same(t, before, h.frontends[f.FrontendKey], "it goes on to listen with another target port")
		assert.EqualValues(t, 30081, before.target.Load())
	})
}

// Connections end with the owner's frontend, so a former owner's connections must not be counted as those of the next one.
func TestConnectionsBelongToTheOwnerOfTheFrontend(t *testing.T) {
	onHost(t, func(h *host) {
		f := record("203.0.113.1", 80, "t/p")
		h.apply(model.Delta{UpsertPools: []model.Pool{poolRecord("t/p", active(11)...), poolRecord("t/q", active(11)...)}, UpsertFrontends: []model.Frontend{f}})
		first := h.frontends[f.FrontendKey].open
		f.Pool = "t/q"
		h.apply(model.Delta{UpsertFrontends: []model.Frontend{f}})
		assert.Same(t, first, h.frontends[f.FrontendKey].open, "the same owner with another pool")
		f.Owner.Name = "other"
		h.apply(model.Delta{UpsertFrontends: []model.Frontend{f}})
		assert.NotSame(t, first, h.frontends[f.FrontendKey].open)
	})
}

func TestAPortThatIsInUseFailsItsFrontendAlone(t *testing.T) {
	onHost(t, func(h *host) {
		other := New()
		taken, free := record("203.0.113.1", 80, "t/p"), record("203.0.113.1", 81, "t/p")
		p := []model.Pool{poolRecord("t/p", active(11)...)}
		_, err := other.Apply(t.Context(), dataplane.Change{Delta: model.Delta{UpsertPools: p, UpsertFrontends: []model.Frontend{taken}}})
		assert.NoError(t, err)
		refused := h.apply(model.Delta{UpsertPools: p, UpsertFrontends: []model.Frontend{taken, free}})
		if assert.Len(t, refused, 1) {
			assert.Contains(t, refused[0], "frontend TCP 203.0.113.1:80: listen tcp 203.0.113.1:80: bind: address already in use")
		}
		assert.NotNil(t, h.frontends[free.FrontendKey].listener)
	})
}

func TestFeaturesThatAProxyLacksAreNotDeclared(t *testing.T) {
	d, err := New().Describe(t.Context())
	require.NoError(t, err)
	require.Equal(t, "example", d.Name)
	for _, f := range []dataplane.Feature{dataplane.SourceRanges, dataplane.Affinity, dataplane.Transparent, dataplane.Direct} {
		require.NotContains(t, d.Features, f)
	}
	checks, err := New().Preflight(t.Context(), dataplane.Config{})
	require.NoError(t, err)
	require.Empty(t, checks, "every host is suitable")
	require.NoError(t, New().Configure(t.Context(), dataplane.Config{}))
}

func TestAnOptionIsAnErrorThatNamesIt(t *testing.T) {
	config := dataplane.Config{Options: map[string]string{"treads": "4"}}
	_, err := New().Preflight(t.Context(), config)
	require.EqualError(t, err, `backend option "treads": the example backend has no options`)
	require.EqualError(t, New().Configure(t.Context(), config), err.Error())
}

func TestTheRenderedTextIsThatOfTheCanonicalRecords(t *testing.T) {
	s := model.Snapshot{Pools: []model.Pool{poolRecord("t/q"), poolRecord("t/p", active(12, 11)...)}, Frontends: []model.Frontend{record("203.0.113.2", 80, "t/p"), record("203.0.113.1", 80, "t/q")}}
	text, err := New().Render(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, s.Canonical().Text(), text)
	require.Contains(t, text, "203.0.113.2")
	empty, err := New().Render(t.Context(), model.Snapshot{})
	require.NoError(t, err)
	require.Less(t, len(empty), len(text))
}
