package envoy

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

func TestASuccessorReadsWhatWasServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	first, err := openStore(path)
	require.NoError(t, err)
	require.False(t, first.known, "nothing was committed, so nothing may be served")
	for _, p := range example().Pools {
		first.setPool(p)
	}
	for _, f := range example().Frontends {
		first.setFrontend(f)
	}
	require.NoError(t, first.commit())
	next, err := openStore(path)
	require.NoError(t, err)
	require.True(t, next.known)
	require.Equal(t, example().Digests(), next.snapshot().Digests())

	gone := example().Frontends[0].FrontendKey
	require.True(t, next.deleteFrontend(gone))
	require.False(t, next.deleteFrontend(gone))
	require.True(t, next.deletePool("a/none"))
	require.NoError(t, next.commit())
	last, err := openStore(path)
	require.NoError(t, err)
	require.Equal(t, next.snapshot().Digests(), last.snapshot().Digests())
	require.NotContains(t, last.frontends, gone)
}

func TestACommitThatWasCutOffIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	s, err := openStore(path)
	require.NoError(t, err)
	s.setPool(example().Pools[0])
	require.NoError(t, s.commit())
	s.setPool(example().Pools[1])
	require.NoError(t, s.commit())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text[:len(text)-5], 0o600))
	s, err = openStore(path)
	require.NoError(t, err)
	require.Len(t, s.pools, 1)
	require.NoError(t, os.WriteFile(path, text[:5], 0o600))
	s, err = openStore(path)
	require.NoError(t, err)
	require.False(t, s.known, "nothing was committed, so nothing may be served")
}

func TestTheJournalStaysShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.journal")
	s, err := openStore(path)
	require.NoError(t, err)
	for i := range 20000 {
		s.setPool(pool("p", i%4, 5+i%3))
		require.NoError(t, s.commit())
	}
	file, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, file.Size(), int64(2*slack))
	next, err := openStore(path)
	require.NoError(t, err)
	require.Equal(t, s.snapshot().Digests(), next.snapshot().Digests())
}

func TestEnvoysReasonIsThatOfTheResource(t *testing.T) {
	message := "Error adding/updating listener(s) TCP 203.0.113.1:80: cannot bind '203.0.113.1:80': Address already in use\nUDP 203.0.113.1:53: malformed\n"
	require.Equal(t, "Error adding/updating listener(s) TCP 203.0.113.1:80: cannot bind '203.0.113.1:80': Address already in use", reasonFor("TCP 203.0.113.1:80", message))
	require.Equal(t, "UDP 203.0.113.1:53: malformed", reasonFor("UDP 203.0.113.1:53", message))
	require.Empty(t, reasonFor("TCP 203.0.113.9:80", message))
	require.Empty(t, reasonFor("TCP 203.0.113.1:8", message), "a name is no other one's beginning")
}

func TestWhatLeavesLingersAndThenGoes(t *testing.T) {
	d, now := newDepartures(), time.Now()
	f := frontend(model.TCP, "203.0.113.1", 80, "a/p")
	pool := func(last ...byte) model.Pool {
		p := model.Pool{ID: "a/p"}
		for _, l := range last {
			p.Endpoints = append(p.Endpoints, endpointAddress(l, model.Active))
		}
		return p
	}
	at := netip.MustParseAddrPort("198.51.100.12:30080")
	require.Empty(t, d.note(f, pool(11, 12), now))
	require.Contains(t, d.note(f, pool(11), now), at)
	require.Contains(t, d.note(f, pool(11), now.Add(lingering/2)), at)
	require.Empty(t, d.note(f, pool(11, 12), now.Add(lingering/2)), "it is back")
	require.Contains(t, d.note(f, pool(11), now.Add(lingering)), at)
	require.Empty(t, d.note(f, pool(11), now.Add(3*lingering)))
}

func TestAddressesOfTheKernelsTable(t *testing.T) {
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
	lines := statLines(strings.NewReader("tcp." + statName(key) + ".downstream_cx_total: 7\nudp.UDP 203.0.113.1:53.downstream_sess_total: 9\nlistener.x: text\n"))
	require.Equal(t, map[string]uint64{statName(key): 7, "UDP 203.0.113.1_53": 9}, lines)
}
