package envoy

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/statefile/smalldisk"
)

// clientOf is the n-th client of a frontend, anEndpoint the n-th endpoint.
func clientOf(frontend identity, n byte) client {
	return client{frontend, netip.AddrFrom4([4]byte{192, 0, 2, n}).As16()}
}
func anEndpoint(n byte) [16]byte { return netip.AddrFrom4([4]byte{198, 51, 100, n}).As16() }

// began is when clients of these tests were seen first.
var began = time.Unix(1_800_000_000, 0)

func after(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }

// have requires that exactly these clients of frontend 1 are remembered, with the endpoint of their number.
func have(t *testing.T, c *clients, numbers ...byte) {
	t.Helper()
	require.Len(t, c.places, len(numbers))
	for _, n := range numbers {
		endpoint, found := c.find(clientOf(1, n), began)
		require.True(t, found, "client %d", n)
		require.Equal(t, anEndpoint(n), endpoint, "client %d", n)
	}
	var order []int64
	for place := c.oldest; place != nowhere; place = c.entries[place].newer {
		order = append(order, c.entries[place].seen)
	}
	require.Len(t, order, len(numbers), "all are in the order in which they were seen")
	require.IsIncreasing(t, append([]int64{0}, order...))
}

func TestAClientIsRememberedSinceItWasSeenLast(t *testing.T) {
	c := newClients(10)
	c.remember(clientOf(1, 7), anEndpoint(7), after(10))
	_, found := c.find(clientOf(1, 7), after(10))
	require.True(t, found)
	_, found = c.find(clientOf(1, 7), after(11))
	require.False(t, found, "it was seen before")
	c.remember(clientOf(1, 7), anEndpoint(7), after(11))
	_, found = c.find(clientOf(1, 7), after(11))
	require.True(t, found, "it was seen again")
	_, found = c.find(clientOf(2, 7), began)
	require.False(t, found, "frontends know their clients apart")
}

func TestMoreClientsThanThereIsRoomForTakeThePlacesOfThoseSeenLongestAgo(t *testing.T) {
	c := newClients(3)
	for n := range byte(3) {
		c.remember(clientOf(1, n), anEndpoint(n), after(int(n)))
	}
	have(t, c, 0, 1, 2)
	c.remember(clientOf(1, 0), anEndpoint(0), after(3))
	c.remember(clientOf(1, 3), anEndpoint(3), after(4))
	have(t, c, 2, 0, 3)
	for n := range byte(200) {
		c.remember(clientOf(1, n), anEndpoint(n), after(10+int(n)))
	}
	have(t, c, 197, 198, 199)
	require.Len(t, c.entries, 3, "strangers do not make it grow")
}

func TestTheClientsOfAFrontendAreForgottenAndLeaveRoom(t *testing.T) {
	c := newClients(4)
	for n := range byte(2) {
		c.remember(clientOf(1, n), anEndpoint(n), after(2*int(n)))
		c.remember(clientOf(2, n), anEndpoint(n), after(2*int(n)+1))
	}
	c.forget(map[identity]bool{2: true})
	have(t, c, 0, 1)
	c.remember(clientOf(1, 2), anEndpoint(2), after(8))
	c.remember(clientOf(1, 3), anEndpoint(3), after(9))
	have(t, c, 0, 1, 2, 3)
	c.forget(map[identity]bool{1: true})
	have(t, c)
}

func TestASuccessorRemembersTheClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clients")
	all := func(identity) bool { return true }
	first := openClients(path, 4, all)
	for n := range byte(5) {
		first.remember(clientOf(1, n), anEndpoint(n), after(int(n)))
	}
	first.remember(clientOf(1, 2), anEndpoint(2), after(8))
	require.NoError(t, first.unkept)
	// It is killed: nothing is closed.
	next := openClients(path, 4, all)
	have(t, next, 1, 3, 4, 2)
	next.remember(clientOf(2, 9), anEndpoint(9), after(9))
	next.forget(map[identity]bool{1: true})
	require.NoError(t, next.close())
	last := openClients(path, 4, all)
	require.Len(t, last.places, 1, "who was forgotten stays so")
	endpoint, found := last.find(clientOf(2, 9), began)
	require.True(t, found)
	require.Equal(t, anEndpoint(9), endpoint)
	require.Empty(t, openClients(path, 4, func(i identity) bool { return i == 1 }).places, "frontend 2 is no more")
	require.Len(t, openClients(path, 4, all).places, 1)
}

func TestWhatIsNoFileOfClientsIsMadeOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clients")
	all := func(identity) bool { return true }
	require.NoError(t, os.WriteFile(path, []byte("something else, and longer than a line of this format, which begins otherwise"), 0o600))
	c := openClients(path, 4, all)
	require.NoError(t, c.unkept)
	have(t, c)
	c.remember(clientOf(1, 1), anEndpoint(1), after(1))
	have(t, openClients(path, 4, all), 1)
}

func TestAFullDiskLosesNoClientWhileTheProcessRuns(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		path := filepath.Join(d.Dir, "clients")
		all := func(identity) bool { return true }
		c := openClients(path, 256, all)
		free := d.Fill(t)
		for n := range byte(200) {
			c.remember(clientOf(1, n), anEndpoint(n), after(int(n)))
		}
		require.ErrorContains(t, c.unkept, "no space left on device")
		require.Len(t, c.places, 200)
		endpoint, found := c.find(clientOf(1, 199), began)
		require.True(t, found)
		require.Equal(t, anEndpoint(199), endpoint)
		free()
		c.retryAt = time.Time{}
		c.remember(clientOf(1, 200), anEndpoint(200), after(200))
		require.NoError(t, c.unkept)
		require.Len(t, openClients(path, 256, all).places, 201, "once there is room all of them are written")
	})
}

// Whatever a file says, no process dies of it, and what it writes is read again.
func FuzzClients(f *testing.F) {
	path := filepath.Join(f.TempDir(), "clients")
	c := openClients(path, 8, func(identity) bool { return true })
	for n := range byte(6) {
		c.remember(clientOf(identity(n%2+1), n), anEndpoint(n), after(int(n)))
	}
	good, err := os.ReadFile(path)
	require.NoError(f, err)
	for _, saved := range [][]byte{good, good[:len(good)-5], append(good, good[len(clientsFormat):]...), nil, []byte(clientsFormat)} {
		f.Add(saved)
	}
	f.Fuzz(func(t *testing.T, saved []byte) {
		path := filepath.Join(t.TempDir(), "clients")
		require.NoError(t, os.WriteFile(path, saved, 0o600))
		all := func(identity) bool { return true }
		first := openClients(path, 8, all)
		for n := range byte(10) {
			first.remember(clientOf(identity(n%3+1), n), anEndpoint(n), after(int(n)))
		}
		first.forget(map[identity]bool{2: true})
		require.NoError(t, first.close())
		next := openClients(path, 8, all)
		require.Equal(t, len(first.places), len(next.places))
		for who := range first.places {
			was, _ := first.find(who, time.Unix(0, -1<<63))
			is, _ := next.find(who, time.Unix(0, -1<<63))
			require.Equal(t, was, is)
		}
		require.NoError(t, next.close())
	})
}
