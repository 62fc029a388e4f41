package dataplane

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

func TestAFrontendNeedsTheFeatureOfEachOfItsFields(t *testing.T) {
	for feature, change := range map[Feature]func(*model.Frontend){
		SourceRanges:  func(f *model.Frontend) { f.Restricted = true },
		Affinity:      func(f *model.Frontend) { f.AffinityTimeout = time.Second },
		Transparent:   func(f *model.Frontend) { f.Forwarding = model.Transparent },
		Direct:        func(f *model.Frontend) { f.Forwarding = model.Direct },
		ProxyProtocol: func(f *model.Frontend) { f.ProxyProtocol = true },
		Limits:        func(f *model.Frontend) { f.MaxConnections = 1 },
		RateLimits:    func(f *model.Frontend) { f.MaxNewPerSecond = 1 },
		IdleTimeout:   func(f *model.Frontend) { f.IdleTimeout = time.Second },
		Redirects:     func(f *model.Frontend) { f.Redirect = model.Redirect{Next: netip.MustParseAddr("192.0.2.2"), Limit: 1} },
	} {
		others := slices.DeleteFunc(Features(), func(f Feature) bool { return f == feature })
		lacking, lacks := Description{Features: others}.Lacks(web(80, change))
		require.True(t, lacks, feature)
		require.Equal(t, feature, lacking)
		_, lacks = Description{Features: []Feature{feature}}.Lacks(web(80, change))
		require.False(t, lacks, "%s is all that it needs", feature)
	}
	_, lacks := Description{}.Lacks(web(80, func(*model.Frontend) {}))
	require.False(t, lacks, "a plain frontend needs nothing")
}

func TestAResyncSaysWhichGenerationsDiffer(t *testing.T) {
	c := Change{Base: at(4), Next: at(5)}
	require.NoError(t, c.RequireBase(at(4)))
	err := c.RequireBase(Generation{"f", 7})
	require.ErrorIs(t, err, ErrResync)
	require.EqualError(t, err, "the dataplane is at f/7, the change is based on e/4: not at the base generation: resync")
}

func TestPollChecksUntilItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var times []time.Time
	err := Poll(ctx, time.Millisecond, func(now time.Time) {
		if times = append(times, now); len(times) == 3 {
			cancel()
		}
	})
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(times), 3)
	require.WithinDuration(t, time.Now(), times[0], time.Minute)
}

func TestAnUnknownCheckSaysWhatMayNotWork(t *testing.T) {
	c := Check{Subject: "XDP", State: CheckUnknown, Found: "not allowed to ask", Costs: "XDP", Advice: "run as root"}
	require.Equal(t, "XDP: not allowed to ask; may not work: XDP; run as root", c.String())
	require.NoError(t, MissingError([]Check{c}))
	require.Empty(t, Lacking([]Check{c}), "it may be there")
}

func TestTheFakeKeepsTheContract(t *testing.T) {
	f := &Fake{Refuse: func(record string) string { return map[string]string{"frontend TCP 203.0.113.1:81": "no"}[record] }}
	require.EqualError(t, f.Configure(t.Context(), Config{}), "configuration without a state directory")
	require.NoError(t, f.Configure(t.Context(), Config{StateDir: "gw"}))
	none := func(*model.Frontend) {}
	pool := model.Pool{ID: "a/p", Tenant: "a"}
	elsewhere := web(82, func(f *model.Frontend) { f.Pool = "a/unknown" })
	change := Change{Next: at(1), Delta: model.Delta{UpsertPools: []model.Pool{pool}, UpsertFrontends: []model.Frontend{web(80, none), web(81, none), elsewhere}}}
	result, err := f.Apply(t.Context(), change)
	require.NoError(t, err)
	require.Equal(t, []RecordError{{Frontend: web(81, none).FrontendKey, Message: "no"}, {Frontend: elsewhere.FrontendKey, Message: "pool a/unknown does not exist in this dataplane"}}, result.Failed)
	holds := func() model.Digests {
		applied, err := f.Applied(t.Context())
		require.NoError(t, err)
		return applied.Digests
	}
	want := model.Snapshot{Pools: []model.Pool{pool}, Frontends: []model.Frontend{web(80, none)}}
	require.Equal(t, want.Digests(), holds())
	require.Equal(t, want.Text(), f.Dump())
	stats, err := f.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, stats.Proxied)

	f.Restart()
	_, err = f.Apply(t.Context(), Change{Base: at(1), Next: at(2)})
	require.ErrorIs(t, err, ErrResync, "a new process is at no generation")
	require.Equal(t, want.Digests(), holds(), "and has its records")
	_, err = f.Apply(t.Context(), Change{Next: at(3), Delta: model.Delta{DeleteFrontends: []model.FrontendKey{web(80, none).FrontendKey, elsewhere.FrontendKey}}})
	require.NoError(t, err, "to delete a record that does not exist is no error")
	require.Empty(t, holds().Frontends)
	require.NoError(t, f.Close(t.Context(), false))
	require.Len(t, holds().Pools, 1)
	require.NoError(t, f.Close(t.Context(), true))
	require.Empty(t, holds().Pools)
}
