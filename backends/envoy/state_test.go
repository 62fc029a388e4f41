package envoy

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/statefile/smalldisk"
	"kubelb.k8c.io/core/model"
)

func TestANewProcessReadsTheState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	first, err := openStore(path)
	require.NoError(t, err)
	require.False(t, first.committed, "nothing was committed, so nothing may be served")
	for _, p := range example().Pools {
		first.setPool(p)
	}
	for _, f := range example().Frontends {
		first.setFrontend(f)
	}
	first.commit()
	next, err := openStore(path)
	require.NoError(t, err)
	require.True(t, next.committed)
	require.Equal(t, example().Digests(), next.snapshot().Digests())

	gone := example().Frontends[0].FrontendKey
	require.True(t, next.deleteFrontend(gone))
	require.False(t, next.deleteFrontend(gone))
	require.True(t, next.deletePool("a/none"))
	next.commit()
	last, err := openStore(path)
	require.NoError(t, err)
	require.Equal(t, next.snapshot().Digests(), last.snapshot().Digests())
	require.NotContains(t, last.frontends, gone)
}

func TestAnIncompleteCommitIsIgnored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	s, err := openStore(path)
	require.NoError(t, err)
	s.setPool(example().Pools[0])
	s.commit()
	s.setPool(example().Pools[1])
	s.commit()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text[:len(text)-5], 0o600))
	s, err = openStore(path)
	require.NoError(t, err)
	require.Len(t, s.pools, 1)
	require.NoError(t, os.WriteFile(path, text[:5], 0o600))
	s, err = openStore(path)
	require.NoError(t, err)
	require.False(t, s.committed, "nothing was committed, so nothing may be served")
}

// successor returns what a new process would serve.
func successor(t *testing.T, path string) model.Digests {
	t.Helper()
	s, err := openStore(path)
	require.NoError(t, err)
	require.NoError(t, s.close())
	require.True(t, s.committed)
	return s.snapshot().Digests()
}

func TestAFullDiskStopsNoChange(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		path := filepath.Join(d.Dir, "state.journal")
		s, err := openStore(path)
		require.NoError(t, err)
		s.commit()
		require.Empty(t, s.note())
		free := d.Fill(t)
		were := []model.Digests{s.snapshot().Digests()}
		for i := range 100 {
			s.setPool(pool("a/p", 1+i, 2+i))
			s.commit()
			were = append(were, s.snapshot().Digests())
			require.Contains(t, were, successor(t, path), "a former state, completely")
		}
		require.Contains(t, s.note(), "no space left on device")
		free()
		s.retryAt = time.Time{}
		s.setPool(pool("a/p", 7))
		s.commit()
		require.Equal(t, s.snapshot().Digests(), successor(t, path))
		require.Empty(t, s.note())
	})
}

func TestAStoreThatCannotBeCompactedIsUsed(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		path := filepath.Join(d.Dir, "state.journal")
		s, err := openStore(path)
		require.NoError(t, err)
		for _, id := range []string{"a/p", "a/q"} {
			s.setPool(pool(id, 1, 100))
			s.commit()
		}
		want := s.snapshot().Digests()
		defer d.Fill(t)()
		require.Equal(t, want, successor(t, path))
		require.Equal(t, want, successor(t, path))
	})
}

func TestAnUnreadableStoreIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	require.NoError(t, os.Mkdir(path, 0o700))
	s, err := openStore(path)
	require.NoError(t, err)
	require.False(t, s.committed)
	require.Contains(t, s.note(), path+".damaged")
	s.setPool(pool("a/p", 7))
	s.commit()
	require.Equal(t, s.snapshot().Digests(), successor(t, path))
}

func TestTheJournalStaysShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	s, err := openStore(path)
	require.NoError(t, err)
	for i := range 20000 {
		s.setPool(pool("p", i%4, 5+i%3))
		s.commit()
	}
	file, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, file.Size(), int64(2*maxOverhead))
	next, err := openStore(path)
	require.NoError(t, err)
	require.Equal(t, s.snapshot().Digests(), next.snapshot().Digests())
}

func TestReasonForIsTheReasonOfTheResource(t *testing.T) {
	message := "Error adding/updating listener(s) TCP 203.0.113.1:80: cannot bind '203.0.113.1:80': Address already in use\nUDP 203.0.113.1:53: malformed\n"
	require.Equal(t, "Error adding/updating listener(s) TCP 203.0.113.1:80: cannot bind '203.0.113.1:80': Address already in use", reasonFor("TCP 203.0.113.1:80", message))
	require.Equal(t, "UDP 203.0.113.1:53: malformed", reasonFor("UDP 203.0.113.1:53", message))
	require.Empty(t, reasonFor("TCP 203.0.113.9:80", message))
	require.Empty(t, reasonFor("TCP 203.0.113.1:8", message), "a prefix of a name is another name")
}

func TestARemovedEndpointIsKeptForAWhile(t *testing.T) {
	d, now := newRemovedEndpoints(), time.Now()
	f := frontend(model.TCP, "203.0.113.1", 80, "a/p")
	pool := func(last ...byte) model.Pool {
		p := model.Pool{ID: "a/p"}
		for _, l := range last {
			p.Endpoints = append(p.Endpoints, endpointAddress(l, model.Active))
		}
		return p
	}
	at := netip.MustParseAddrPort("198.51.100.12:30080")
	require.Empty(t, d.update(f, pool(11, 12), now))
	require.Contains(t, d.update(f, pool(11), now), at)
	require.Contains(t, d.update(f, pool(11), now.Add(removalDelay/2)), at)
	require.Empty(t, d.update(f, pool(11, 12), now.Add(removalDelay/2)), "the endpoint is in the pool again")
	require.Contains(t, d.update(f, pool(11), now.Add(removalDelay)), at)
	require.Empty(t, d.update(f, pool(11), now.Add(3*removalDelay)))
}

func TestParseProcAddress(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:0050":                         "127.0.0.1:80",
		"0171CB00:1F90":                         "0.203.113.1:8080",
		"B80D01200F0000000000000001000000:01BB": "[2001:db8:0:f::1]:443",
	} {
		got, err := parseProcAddress(text)
		require.NoError(t, err)
		require.Equal(t, want, got.String())
	}
	_, err := parseProcAddress("xx:50")
	require.Error(t, err)
}

func TestNamesInStatistics(t *testing.T) {
	key := frontend(model.TCP, "2001:db8:f::1", 80, "a/p").FrontendKey
	lines, err := statLines(strings.NewReader("tcp." + statName(key) + ".downstream_cx_total: 7\nudp.UDP 203.0.113.1:53.downstream_sess_total: 9\nlistener.x: text\n"))
	require.NoError(t, err)
	require.Equal(t, map[string]uint64{statName(key): 7, "UDP 203.0.113.1_53": 9}, lines)
	_, err = statLines(iotest.ErrReader(io.ErrUnexpectedEOF))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "numbers that are missing are not zero")
}
