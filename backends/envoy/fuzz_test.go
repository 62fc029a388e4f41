package envoy

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"kubelb.k8c.io/core/model"
)

func journal(t testing.TB, commits ...commit) (out []byte) {
	t.Helper()
	for _, c := range commits {
		line, err := json.Marshal(c)
		require.NoError(t, err)
		out = append(append(out, line...), '\n')
	}
	return out
}

// spoilt returns invalid records, which no manager sends, but which are valid JSON.
func spoilt() (pools []model.Pool, frontends []storedFrontend) {
	broken := frontend(model.TCP, "203.0.113.7", 80, "a/p")
	for _, change := range []func(*model.Frontend){
		func(f *model.Frontend) { f.VIP = netip.Addr{} },
		func(f *model.Frontend) { f.VIP = netip.MustParseAddr("fe80::1%eth0") },
		func(f *model.Frontend) { f.TargetPort = 0 },
		func(f *model.Frontend) { f.Forwarding = model.Direct },
		func(f *model.Frontend) { f.AffinityTimeout = -time.Hour },
		func(f *model.Frontend) { f.IdleTimeout = -time.Hour },
		func(f *model.Frontend) { f.Restricted, f.SourceRanges = true, []netip.Prefix{{}} },
		func(f *model.Frontend) {
			f.Redirect = model.Redirect{Next: netip.MustParseAddr("192.0.2.1"), Limit: model.MaxRedirects + 1}
		},
	} {
		f := broken
		f.Port += uint16(len(frontends))
		change(&f)
		frontends = append(frontends, stored(f))
	}
	pools = []model.Pool{{ID: "a/unowned"}, {ID: "a/lost", Tenant: "a", Endpoints: []model.Endpoint{{ID: "n", Weight: 1}}}}
	return pools, frontends
}

// Records from any journal are valid, can be rendered, and are written and read without a change.
func FuzzJournal(f *testing.F) {
	whole := commit{Pools: example().Pools}
	for _, fe := range example().Frontends {
		whole.Frontends = append(whole.Frontends, stored(fe))
	}
	gone := commit{GoneFrontends: []model.FrontendKey{example().Frontends[0].FrontendKey}, GonePools: []model.PoolID{"a/none"}}
	pools, frontends := spoilt()
	f.Add(journal(f, whole, gone))
	f.Add(journal(f, whole, commit{Pools: pools, Frontends: frontends}))
	f.Add(append(journal(f, whole), "null\n{}\n{\"frontends\":[{}]}\n{\"pools\":[{}]}\n{\"frontends\":[{\"idle\":-1}]"...))
	f.Fuzz(func(t *testing.T, text []byte) {
		s := newStore("")
		require.NoError(t, s.readFrom(bytes.NewReader(text)))
		s.dropInvalid()
		require.True(t, s.committed || len(s.pools)+len(s.frontends) == 0)
		for id, p := range s.pools {
			require.Equal(t, id, p.ID)
			require.NoError(t, p.Validate())
		}
		removed := newRemovedEndpoints()
		for key, fe := range s.frontends {
			require.Equal(t, key, fe.FrontendKey)
			require.NoError(t, fe.Validate())
			r := render(fe, s.pools[fe.Pool], defaults().timeouts, removed.update(fe, s.pools[fe.Pool], time.Now()))
			for _, m := range []proto.Message{r.cluster, r.assignment, r.listener} {
				_, err := proto.Marshal(m)
				require.NoError(t, err)
			}
			_ = s.rulesOf(fe, !s.empty(fe)).chain()
		}
		again := newStore("")
		require.NoError(t, again.readFrom(bytes.NewReader(journal(t, s.all()))))
		again.dropInvalid()
		require.Empty(t, again.invalid)
		require.Equal(t, s.snapshot().Digests(), again.snapshot().Digests())
	})
}

func TestDamagedRecordsOfAJournalAreDroppedAndReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	whole := commit{Pools: example().Pools}
	for _, f := range example().Frontends {
		whole.Frontends = append(whole.Frontends, stored(f))
	}
	pools, frontends := spoilt()
	require.NoError(t, os.WriteFile(path, journal(t, whole, commit{Pools: pools, Frontends: frontends}), 0o600))
	s, err := openStore(path)
	require.NoError(t, err)
	require.Equal(t, example().Digests(), s.snapshot().Digests(), "the manager sees what is missing and sends it")
	require.Contains(t, s.note(), "10 of its records are invalid")
	require.NoError(t, s.close())
	require.Equal(t, example().Digests(), successor(t, path))
}
