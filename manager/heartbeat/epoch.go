package heartbeat

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"kubelb.k8c.io/backends/statefile"
)

// epochFile keeps the last epoch in the gateway's state directory.
const epochFile = "heartbeat.epoch"

func epochAfter(kept uint64, now time.Time) uint64 {
	return max(kept+1, uint64(max(0, now.UnixNano())))
}

// NextEpoch is an epoch for a process that begins: higher than those of all processes before it that had the directory, whatever became of
// the clock. It is the time in nanoseconds where that is higher, so that a directory that was lost is hardly ever missed, and so that
// it is above what earlier versions used, which was the time alone. It is good even with an error, which says that it is not kept.
func NextEpoch(dir string, now time.Time) (uint64, error) {
	path := filepath.Join(dir, epochFile)
	next := epochAfter(0, now)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	// A file that makes no sense is as good as none.
	if kept, failed := strconv.ParseUint(string(text), 10, 64); failed == nil && kept < math.MaxInt64 {
		next = epochAfter(kept, now)
	}
	if err := errors.Join(err, statefile.Write(path, strconv.AppendUint(nil, next, 10))); err != nil {
		// The next process must not begin with the same one.
		return next + rand.Uint64N(uint64(time.Second)), fmt.Errorf("keep this process' epoch of heartbeats: %w", err)
	}
	return next, nil
}
