package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// bare is a dataplane without checks that records its calls.
type bare struct {
	Dataplane
	features []Feature
	reached  []Change
	rendered []model.Snapshot
	failed   []RecordError
	err      error
}

func (b *bare) Describe(context.Context) (Description, error) {
	return Description{Name: "bare", Features: b.features}, nil
}
func (b *bare) Configure(context.Context, Config) error { return b.err }
func (b *bare) Applied(context.Context) (Applied, error) {
	return Applied{Digests: model.NewDigests()}, nil
}
func (b *bare) Close(context.Context, bool) error { return nil }
func (b *bare) Apply(_ context.Context, c Change) (Result, error) {
	b.reached = append(b.reached, c)
	return Result{Operations: uint64(c.Len()), Failed: b.failed}, b.err
}
func (b *bare) Render(_ context.Context, s model.Snapshot) (string, error) {
	b.rendered = append(b.rendered, s)
	return "text", nil
}

func at(n uint64) Generation { return Generation{Epoch: "e", Number: n} }

func web(port uint16, change func(*model.Frontend)) model.Frontend {
	f := model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: port}, Tenant: "a", Pool: "a/p", TargetPort: 30080}
	change(&f)
	return f
}

func TestADataplaneGetsChangesOnlyOnceItIsConfigured(t *testing.T) {
	b := &bare{err: errors.New("no such interface")}
	d := Checked(b)
	_, err := d.Apply(t.Context(), Change{})
	require.EqualError(t, err, "apply before configure")
	require.ErrorIs(t, d.Configure(t.Context(), Config{}), b.err)
	_, err = d.Apply(t.Context(), Change{})
	require.EqualError(t, err, "apply before configure", "Configure failed")
	b.err = nil
	require.NoError(t, d.Configure(t.Context(), Config{}))
	_, err = d.Apply(t.Context(), Change{})
	require.NoError(t, err)
	require.NoError(t, d.Close(t.Context(), true))
	_, err = d.Apply(t.Context(), Change{})
	require.EqualError(t, err, "apply before configure", "it is closed")
	require.Len(t, b.reached, 1)
}

func TestADataplaneGetsOnlyChangesBasedOnItsGeneration(t *testing.T) {
	b := &bare{}
	d := Checked(b)
	require.NoError(t, d.Configure(t.Context(), Config{}))
	generation := func() Generation {
		applied, err := d.Applied(t.Context())
		require.NoError(t, err)
		return applied.Generation
	}
	require.Zero(t, generation(), "of a new process")
	result, err := d.Apply(t.Context(), Change{Next: at(5)})
	require.NoError(t, err)
	require.Equal(t, at(5), result.Generation)
	require.Equal(t, at(5), generation())
	for _, base := range []Generation{{}, at(4), at(6), {Epoch: "f", Number: 5}} {
		_, err = d.Apply(t.Context(), Change{Base: base, Next: at(9)})
		require.ErrorIs(t, err, ErrResync)
	}
	require.Len(t, b.reached, 1)
	require.Equal(t, at(5), generation(), "a refused change does not change the generation")

	b.err = errors.New("the kernel went away")
	_, err = d.Apply(t.Context(), Change{Base: at(5), Next: at(6)})
	require.ErrorIs(t, err, b.err)
	b.err = nil
	for _, base := range []Generation{at(5), at(6)} {
		_, err = d.Apply(t.Context(), Change{Base: base, Next: at(7)})
		require.ErrorIs(t, err, ErrResync, "after an error the state is unknown")
	}
	_, err = d.Apply(t.Context(), Change{Base: generation(), Next: at(8)})
	require.NoError(t, err)
}

func TestUnsupportedRecordsDoNotReachTheDataplane(t *testing.T) {
	b := &bare{features: []Feature{Transparent}, failed: []RecordError{{Frontend: web(80, func(*model.Frontend) {}).FrontendKey, Message: "no route"}}}
	d := Checked(b)
	require.NoError(t, d.Configure(t.Context(), Config{}))
	none := func(*model.Frontend) {}
	change := Change{Next: at(1), Delta: model.Delta{
		UpsertPools: []model.Pool{{ID: "a/p", Tenant: "a"}, {ID: "a/bad", Tenant: "a", Endpoints: []model.Endpoint{{ID: "n", Weight: 1}}}},
		UpsertFrontends: []model.Frontend{web(80, none), web(81, func(f *model.Frontend) { f.TargetPort = 0 }), web(82, func(f *model.Frontend) { f.IdleTimeout = time.Minute }),
			web(83, func(f *model.Frontend) { f.Forwarding = model.Transparent })},
		DeleteFrontends: []model.FrontendKey{web(90, none).FrontendKey}, DeletePools: []model.PoolID{"a/gone"}}}
	result, err := d.Apply(t.Context(), change)
	require.NoError(t, err)
	messages := map[string]string{}
	for _, e := range result.Failed {
		messages[e.Record()] = e.Message
	}
	require.Len(t, messages, 4)
	require.Contains(t, messages["pool a/bad"], "is not a plain IPv4 or IPv6 address")
	require.Contains(t, messages["frontend TCP 203.0.113.1:81"], "target port 0")
	require.Equal(t, "the bare backend does not support idle-timeout", messages["frontend TCP 203.0.113.1:82"])
	require.Equal(t, "no route", messages["frontend TCP 203.0.113.1:80"], "an error of the dataplane itself")
	reached := b.reached[0]
	require.Equal(t, change.UpsertPools[:1], reached.UpsertPools)
	require.Equal(t, []model.Frontend{change.UpsertFrontends[0], change.UpsertFrontends[3]}, reached.UpsertFrontends)
	require.Equal(t, change.DeleteFrontends, reached.DeleteFrontends)
	require.Equal(t, change.DeletePools, reached.DeletePools)
	require.Len(t, change.UpsertFrontends, 4, "the caller's change is not modified")
}

func TestOnlySupportedSnapshotsAreRendered(t *testing.T) {
	b := &bare{}
	d := Checked(b)
	snapshot := model.Snapshot{Pools: []model.Pool{{ID: "a/p", Tenant: "a"}}, Frontends: []model.Frontend{web(80, func(*model.Frontend) {})}}
	text, err := d.Render(t.Context(), snapshot)
	require.NoError(t, err)
	require.Equal(t, "text", text)
	for want, change := range map[string]func(*model.Frontend){
		"frontend TCP 203.0.113.1:80: the bare backend does not support idle-timeout": func(f *model.Frontend) { f.IdleTimeout = time.Minute },
		"frontend TCP 203.0.113.1:80: target port 0":                                  func(f *model.Frontend) { f.TargetPort = 0 },
		"frontend TCP 203.0.113.1:80: pool a/q does not exist":                        func(f *model.Frontend) { f.Pool = "a/q" },
	} {
		snapshot.Frontends = []model.Frontend{web(80, change)}
		_, err := d.Render(t.Context(), snapshot)
		require.ErrorContains(t, err, want)
	}
	require.Len(t, b.rendered, 1)
}

func TestADataplaneGetsEachKeyOnce(t *testing.T) {
	b := &bare{}
	d := Checked(b)
	require.NoError(t, d.Configure(t.Context(), Config{}))
	target := func(port uint16) func(*model.Frontend) { return func(f *model.Frontend) { f.TargetPort = port } }
	endpoints := []model.Endpoint{{ID: "n", Address: netip.MustParseAddr("198.51.100.10"), Weight: 1}}
	deleted := web(81, target(0))
	result, err := d.Apply(t.Context(), Change{Next: at(1), Delta: model.Delta{
		UpsertPools:     []model.Pool{{ID: "a/p", Tenant: "a"}, {ID: "a/deleted", Tenant: "a"}, {ID: "a/q", Tenant: "a"}, {ID: "a/p", Tenant: "a", Endpoints: endpoints}},
		UpsertFrontends: []model.Frontend{web(80, target(0)), deleted, web(82, target(2)), web(80, target(1))},
		DeleteFrontends: []model.FrontendKey{deleted.FrontendKey}, DeletePools: []model.PoolID{"a/deleted"}}})
	require.NoError(t, err)
	require.Empty(t, result.Failed, "an upsert without effect is not refused")
	reached := b.reached[0]
	require.Equal(t, []model.Pool{{ID: "a/q", Tenant: "a"}, {ID: "a/p", Tenant: "a", Endpoints: endpoints}}, reached.UpsertPools)
	require.Equal(t, []model.Frontend{web(82, target(2)), web(80, target(1))}, reached.UpsertFrontends, "the last one counts")
	require.Equal(t, []model.FrontendKey{deleted.FrontendKey}, reached.DeleteFrontends)
	require.Equal(t, []model.PoolID{"a/deleted"}, reached.DeletePools)
}
