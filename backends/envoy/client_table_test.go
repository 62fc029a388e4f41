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

// clientOf returns the n-th client of a frontend, endpointBytes the address of the n-th endpoint.
func clientOf(frontend frontendID, n byte) clientKey {
	return clientKey{frontend, netip.AddrFrom4([4]byte{192, 0, 2, n}).As16()}
}
func endpointBytes(n byte) [16]byte { return netip.AddrFrom4([4]byte{198, 51, 100, n}).As16() }

// start is the earliest time at which a client of these tests is seen.
var start = time.Unix(1_800_000_000, 0)

func after(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

// requireClients requires that the table has exactly these clients of frontend 1, each with the endpoint of the same number.
func requireClients(t *testing.T, c *clientTable, numbers ...byte) {
	t.Helper()
	require.Len(t, c.slots, len(numbers))
	for _, n := range numbers {
		endpoint, found := c.find(clientOf(1, n), start)
		require.True(t, found, "client %d", n)
		require.Equal(t, endpointBytes(n), endpoint, "client %d", n)
	}
	var order []int64
	if list := c.tenants[frontendID(1).tenant()]; list != nil {
		require.Equal(t, len(numbers), list.length)
		for slot := list.oldest; slot != noSlot; slot = c.entries[slot].newer {
			order = append(order, c.entries[slot].seen)
		}
	}
	require.Len(t, order, len(numbers), "all are in the order in which they were seen")
	require.IsIncreasing(t, append([]int64{0}, order...))
}

// unwritten returns the number of slots that wait to be written, and whether some are being written.
func unwritten(c *clientTable) (waiting int, writing bool) {
	c.file.mu.Lock()
	defer c.file.mu.Unlock()
	return len(c.file.pending), !c.file.writing.IsZero()
}

// requireWritten waits until the file has all slots.
func requireWritten(t testing.TB, c *clientTable) {
	t.Helper()
	require.Eventually(t, func() bool {
		waiting, writing := unwritten(c)
		return waiting == 0 && !writing
	}, 3*writeRetryInterval, time.Millisecond)
	require.NoError(t, c.problem())
}

// openTestTable opens a table until the test ends.
func openTestTable(t testing.TB, path string, capacity int, known func(frontendID) bool) *clientTable {
	t.Helper()
	c := openClientTable(path, capacity, known)
	t.Cleanup(func() { require.NoError(t, c.close()) })
	return c
}

func allFrontends(frontendID) bool { return true }

func TestAClientIsFoundUntilItsTimeoutAfterItWasLastSeen(t *testing.T) {
	c := newClientTable(10)
	c.put(clientOf(1, 7), endpointBytes(7), after(10))
	_, found := c.find(clientOf(1, 7), after(10))
	require.True(t, found)
	_, found = c.find(clientOf(1, 7), after(11))
	require.False(t, found, "it was seen before")
	c.put(clientOf(1, 7), endpointBytes(7), after(11))
	_, found = c.find(clientOf(1, 7), after(11))
	require.True(t, found, "it was seen again")
	_, found = c.find(clientOf(2, 7), start)
	require.False(t, found, "it is a client of another frontend")
}

func TestAFullTableEvictsTheLeastRecentlySeenClient(t *testing.T) {
	c := newClientTable(3)
	for n := range byte(3) {
		c.put(clientOf(1, n), endpointBytes(n), after(int(n)))
	}
	requireClients(t, c, 0, 1, 2)
	c.put(clientOf(1, 0), endpointBytes(0), after(3))
	c.put(clientOf(1, 3), endpointBytes(3), after(4))
	requireClients(t, c, 2, 0, 3)
	for n := range byte(200) {
		c.put(clientOf(1, n), endpointBytes(n), after(10+int(n)))
	}
	requireClients(t, c, 197, 198, 199)
	require.Len(t, c.entries, 3, "the table does not grow beyond its capacity")
}

func TestSlotsOfDeletedClientsAreUsedAgain(t *testing.T) {
	c := newClientTable(4)
	for n := range byte(2) {
		c.put(clientOf(1, n), endpointBytes(n), after(2*int(n)))
		c.put(clientOf(2, n), endpointBytes(n), after(2*int(n)+1))
	}
	c.deleteFrontends(map[frontendID]bool{2: true})
	requireClients(t, c, 0, 1)
	c.put(clientOf(1, 2), endpointBytes(2), after(8))
	c.put(clientOf(1, 3), endpointBytes(3), after(9))
	requireClients(t, c, 0, 1, 2, 3)
	c.deleteFrontends(map[frontendID]bool{1: true})
	requireClients(t, c)
}

func TestTheNextProcessHasTheClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clients")
	first := openTestTable(t, path, 4, allFrontends)
	for n := range byte(5) {
		first.put(clientOf(1, n), endpointBytes(n), after(int(n)))
	}
	first.put(clientOf(1, 2), endpointBytes(2), after(8))
	requireWritten(t, first)
	// The process is killed: it does not close the file.
	next := openClientTable(path, 4, allFrontends)
	requireClients(t, next, 1, 3, 4, 2)
	next.put(clientOf(2, 9), endpointBytes(9), after(9))
	next.deleteFrontends(map[frontendID]bool{1: true})
	require.NoError(t, next.close())
	last := openTestTable(t, path, 4, allFrontends)
	require.Len(t, last.slots, 1, "deleted clients are not in the file")
	endpoint, found := last.find(clientOf(2, 9), start)
	require.True(t, found)
	require.Equal(t, endpointBytes(9), endpoint)
	require.Empty(t, openTestTable(t, path, 4, func(i frontendID) bool { return i == 1 }).slots, "frontend 2 was deleted")
	require.Len(t, openTestTable(t, path, 4, allFrontends).slots, 1)
}

func TestAFileOfAnotherFormatIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clients")
	require.NoError(t, os.WriteFile(path, []byte("a file of another format, which is longer than the first line of this format"), 0o600))
	c := openTestTable(t, path, 4, allFrontends)
	require.NoError(t, c.problem())
	requireClients(t, c)
	c.put(clientOf(1, 1), endpointBytes(1), after(1))
	requireWritten(t, c)
	requireClients(t, openTestTable(t, path, 4, allFrontends), 1)
}

func TestAFileThatCannotBeOpenedIsReported(t *testing.T) {
	dir := t.TempDir()
	c := openTestTable(t, dir, 4, allFrontends)
	require.ErrorContains(t, c.problem(), "is a directory")
	c.put(clientOf(1, 1), endpointBytes(1), after(1))
	requireClients(t, c, 1)
}

func TestAFullDiskLosesNoClientWhileTheProcessRuns(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		path := filepath.Join(d.Dir, "clients")
		c := openClientTable(path, 256, allFrontends)
		free := d.Fill(t)
		for n := range byte(200) {
			c.put(clientOf(1, n), endpointBytes(n), after(int(n)))
		}
		require.Eventually(t, func() bool { return c.problem() != nil }, writeRetryInterval, time.Millisecond)
		require.ErrorContains(t, c.problem(), "no space left on device")
		require.Len(t, c.slots, 200)
		endpoint, found := c.find(clientOf(1, 199), start)
		require.True(t, found)
		require.Equal(t, endpointBytes(199), endpoint)
		free()
		c.put(clientOf(1, 200), endpointBytes(200), after(200))
		requireWritten(t, c)
		require.NoError(t, c.close())
		last := openClientTable(path, 256, allFrontends)
		require.Len(t, last.slots, 201, "all of them are written once there is space")
		require.NoError(t, last.close())
	})
}

// stalledDisk blocks all writes until the channel is closed.
type stalledDisk struct {
	*os.File
	answers chan struct{}
}

func (d stalledDisk) WriteAt(b []byte, at int64) (int, error) {
	<-d.answers
	return d.File.WriteAt(b, at)
}

func TestAStalledDiskDelaysNoConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clients")
	opened := openClientTable(path, 4, allFrontends)
	require.NoError(t, opened.close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	disk := stalledDisk{f, make(chan struct{})}
	c := newClientTable(4)
	c.file = &clientFile{path: path, file: disk}
	c.file.start()
	for n := range byte(9) {
		c.put(clientOf(1, n), endpointBytes(n), after(int(n)))
	}
	requireClients(t, c, 5, 6, 7, 8)
	waiting, _ := unwritten(c)
	require.LessOrEqual(t, waiting, 4, "no more slots wait than the table has")
	require.Eventually(t, func() bool { return c.problem() != nil }, 3*writeRetryInterval, 10*time.Millisecond)
	require.ErrorContains(t, c.problem(), path+": the disk has not answered for ")
	close(disk.answers)
	requireWritten(t, c)
	requireClients(t, openTestTable(t, path, 4, allFrontends), 5, 6, 7, 8)
	require.NoError(t, c.close())
}

// Any content of the file can be read, and the next process reads what this one writes.
func FuzzClients(f *testing.F) {
	path := filepath.Join(f.TempDir(), "clients")
	c := openClientTable(path, 8, allFrontends)
	for n := range byte(6) {
		c.put(clientOf(frontendID(n%2+1), n), endpointBytes(n), after(int(n)))
	}
	require.NoError(f, c.close())
	good, err := os.ReadFile(path)
	require.NoError(f, err)
	for _, saved := range [][]byte{good, good[:len(good)-5], append(good, good[len(clientsFormat):]...), nil, []byte(clientsFormat)} {
		f.Add(saved)
	}
	f.Fuzz(func(t *testing.T, saved []byte) {
		path := filepath.Join(t.TempDir(), "clients")
		require.NoError(t, os.WriteFile(path, saved, 0o600))
		first := openClientTable(path, 8, allFrontends)
		for n := range byte(10) {
			first.put(clientOf(frontendID(n%3+1), n), endpointBytes(n), after(int(n)))
		}
		first.deleteFrontends(map[frontendID]bool{2: true})
		require.NoError(t, first.close())
		next := openClientTable(path, 8, allFrontends)
		require.Equal(t, len(first.slots), len(next.slots))
		for key := range first.slots {
			was, _ := first.find(key, time.Unix(0, -1<<63))
			is, _ := next.find(key, time.Unix(0, -1<<63))
			require.Equal(t, was, is)
		}
		require.NoError(t, next.close())
	})
}
