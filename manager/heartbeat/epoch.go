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

// epochFile holds the last epoch. It is in the gateway's state directory.
const epochFile = "heartbeat.epoch"

func nextEpoch(saved uint64, now time.Time) uint64 {
	return max(saved+1, uint64(max(0, now.UnixNano())))
}

// NextEpoch returns the epoch of a process that starts: higher than the epochs of all earlier processes with this directory, even if the clock was
// set back. It is at least the time in nanoseconds. So the loss of the directory rarely matters, and the epoch is higher than those of earlier
// versions, which used the time alone. The epoch is valid even with an error, which means that it could not be saved.
func NextEpoch(dir string, now time.Time) (uint64, error) {
	path := filepath.Join(dir, epochFile)
	next := nextEpoch(0, now)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	// An invalid file counts as none.
	if saved, invalid := strconv.ParseUint(string(text), 10, 64); invalid == nil && saved < math.MaxInt64 {
		next = nextEpoch(saved, now)
	}
	if err := errors.Join(err, statefile.Write(path, strconv.AppendUint(nil, next, 10))); err != nil {
		// The next process must not start with the same epoch.
		return next + rand.Uint64N(uint64(time.Second)), fmt.Errorf("save the epoch of this process' heartbeats: %w", err)
	}
	return next, nil
}
