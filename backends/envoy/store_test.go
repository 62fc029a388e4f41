package envoy

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

func TestTheStoreKnowsWhichFrontendsUseAPool(t *testing.T) {
	s := newStore(filepath.Join(t.TempDir(), "state"))
	one, two := frontend(model.TCP, "203.0.113.1", 80, "a/p"), frontend(model.TCP, "203.0.113.1", 81, "a/p")
	s.setFrontend(one)
	s.setFrontend(two)
	require.Equal(t, map[model.PoolID]map[model.FrontendKey]bool{"a/p": {one.FrontendKey: true, two.FrontendKey: true}}, s.usersOf)
	one.Pool = "a/q"
	s.setFrontend(one)
	require.Equal(t, map[model.PoolID]map[model.FrontendKey]bool{"a/p": {two.FrontendKey: true}, "a/q": {one.FrontendKey: true}}, s.usersOf)
	require.True(t, s.deleteFrontend(one.FrontendKey))
	require.True(t, s.deleteFrontend(two.FrontendKey))
	require.Empty(t, s.usersOf)
}

func TestADeletedFrontendWaitsForNoAnswer(t *testing.T) {
	s := newStore(filepath.Join(t.TempDir(), "state"))
	f := frontend(model.TCP, "203.0.113.1", 80, "a/p")
	s.pending[f.FrontendKey] = true
	require.False(t, s.deleteFrontend(f.FrontendKey), "Envoy has not accepted it")
	require.Empty(t, s.pending)
}

// The model's JSON has whole seconds.
func TestTimeoutsOfLessThanASecondAreStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s, err := openStore(path)
	require.NoError(t, err)
	f := frontend(model.UDP, "203.0.113.1", 53, "a/p")
	f.IdleTimeout, f.AffinityTimeout = 1500*time.Millisecond, time.Minute
	s.setFrontend(f)
	s.commit()
	next, err := openStore(path)
	require.NoError(t, err)
	require.Equal(t, f, next.frontends[f.FrontendKey])
}

func TestInvalidRecordsOfAFileAreDroppedAndReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s, err := openStore(path)
	require.NoError(t, err)
	good, bad := frontend(model.TCP, "203.0.113.1", 80, "a/p"), frontend(model.TCP, "203.0.113.1", 0, "a/p")
	s.setPool(activePool("a/p", 11))
	s.setPool(model.Pool{ID: "a/bad"})
	s.setFrontend(good)
	s.setFrontend(bad)
	s.commit()
	next, err := openStore(path)
	require.NoError(t, err)
	require.Equal(t, model.Snapshot{Pools: []model.Pool{activePool("a/p", 11)}, Frontends: []model.Frontend{good}}.Digests(), next.snapshot().Digests())
	require.Contains(t, next.note(), "the state file was damaged: 2 of its records are invalid, and the manager sends them again: ")
	again, err := openStore(path)
	require.NoError(t, err)
	require.Empty(t, again.note(), "the file was written again without them")
}

func TestAFailedWriteIsTriedAgainAfterAPause(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	s, err := openStore(path)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(path+".next", 0o700)) // where the next content is written
	s.setPool(activePool("a/p", 11))
	s.commit()
	require.Contains(t, s.note(), "the state file could not be written: ")
	require.Contains(t, s.note(), "free space on that file system")
	require.True(t, s.committed, "Envoy is served nevertheless")
	require.NoError(t, os.RemoveAll(path+".next"))
	s.setPool(activePool("a/q", 12))
	s.commit()
	require.NoFileExists(t, path, "the pause is not over")
	s.retryAt = time.Now().Add(-time.Second)
	s.commit()
	require.Empty(t, s.note())
	require.Equal(t, s.snapshot().Digests(), successor(t, path), "with the changes of all attempts")
}

func TestANewProcessKnowsWhichFrontendsEnvoyMayNotHave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s, err := openStore(path)
	require.NoError(t, err)
	one, two := frontend(model.TCP, "203.0.113.1", 80, "a/p"), frontend(model.TCP, "203.0.113.1", 81, "a/p")
	s.setFrontend(one)
	s.commit()
	s.settle()
	s.setPool(model.Pool{ID: "a/p", Tenant: "a"})
	s.setFrontend(two)
	s.pending[one.FrontendKey], s.pending[two.FrontendKey] = true, true
	s.commit()
	reopened := func() map[model.FrontendKey]bool {
		other := newStore(path)
		require.NoError(t, other.read())
		return other.pending
	}
	require.Equal(t, s.pending, reopened(), "killed before Envoy had the change")
	require.NoError(t, s.compact())
	require.Equal(t, s.pending, reopened(), "after a compaction")
	delete(s.pending, two.FrontendKey)
	s.settle()
	require.Equal(t, map[model.FrontendKey]bool{one.FrontendKey: true}, reopened(), "Envoy has answered for one of them")
	delete(s.pending, one.FrontendKey)
	s.settle()
	require.Empty(t, reopened())
}

func TestAFormerFrontendIsForgottenOnceEnvoyDoesNotCountIt(t *testing.T) {
	s, err := openStore(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	counted, gone := frontend(model.TCP, "203.0.113.1", 80, "a/p"), frontend(model.UDP, "203.0.113.1", 80, "a/p")
	for _, f := range []model.Frontend{counted, gone} {
		s.setFrontend(f)
		s.deleteFrontend(f.FrontendKey)
	}
	s.forgetUncounted(map[string]uint64{statName(counted.FrontendKey): 0})
	require.Equal(t, map[model.FrontendKey]bool{counted.FrontendKey: true}, s.former)
}

func TestAFormerFrontendIsKnownUntilItsKeyIsUsedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s, err := openStore(path)
	require.NoError(t, err)
	f := frontend(model.TCP, "203.0.113.1", 80, "a/p")
	for _, compact := range []bool{false, true} {
		s.setFrontend(f)
		s.deleteFrontend(f.FrontendKey)
		s.commit()
		if compact {
			require.NoError(t, s.compact())
		}
		other := newStore(path)
		require.NoError(t, other.read())
		require.True(t, other.former[f.FrontendKey])
		s.counted[f.FrontendKey] = 12
		s.setFrontend(f)
		s.commit()
		other = newStore(path)
		require.NoError(t, other.read())
		require.Empty(t, other.former)
		require.Equal(t, uint64(12), other.counted[f.FrontendKey])
	}
}
