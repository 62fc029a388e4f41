package envoy

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// clientFile writes the slots of a clientTable to its file, in its own goroutine, so that connections do not wait for the disk. After a failure it tries
// again every writeRetryInterval.
type clientFile struct {
	path string
	file interface {
		io.WriterAt
		io.Closer
	}

	mu      sync.Mutex // guards pending, writing and err
	pending map[int32]clientEntry
	// writing is when the current write began, zero if there is none. err is the error of the last write.
	writing time.Time
	err     error

	// changed has an item if pending may have slots.
	changed       chan struct{}
	stop, stopped chan struct{}
}

// start starts the goroutine. It ends with close.
func (f *clientFile) start() {
	f.pending = map[int32]clientEntry{}
	f.changed, f.stop, f.stopped = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go f.run()
}

// put queues a slot to be written.
func (f *clientFile) put(slot int32, e clientEntry) {
	f.mu.Lock()
	f.pending[slot] = e
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *clientFile) run() {
	defer close(f.stopped)
	for {
		changed, retry := f.changed, (<-chan time.Time)(nil)
		if err := f.flush(); err != nil {
			changed, retry = nil, time.After(writeRetryInterval)
		}
		select {
		case <-changed:
		case <-retry:
		case <-f.stop:
			_ = f.flush() // nobody reads an error any more
			return
		}
	}
}

// flush writes the pending slots. After an error the slots that were not written are pending again.
func (f *clientFile) flush() error {
	f.mu.Lock()
	batch := f.pending
	f.pending, f.writing = map[int32]clientEntry{}, time.Now()
	f.mu.Unlock()
	var err error
	for _, slot := range slices.Sorted(maps.Keys(batch)) {
		if _, err = f.file.WriteAt(batch[slot].append(nil), int64(len(clientsFormat))+int64(slot)*entrySize); err != nil {
			break
		}
		delete(batch, slot)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.Copy(batch, f.pending)
	f.pending, f.writing, f.err = batch, time.Time{}, err
	return err
}

// problem returns why some slots are not in the file, nil if all are or soon will be.
func (f *clientFile) problem(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if since := now.Sub(f.writing); !f.writing.IsZero() && since > writeRetryInterval {
		return fmt.Errorf("write %s: the disk has not answered for %s", f.path, since.Round(time.Second))
	}
	return f.err
}

// close writes the pending slots, if it can, and closes the file. It waits for a disk that does not answer for writeRetryInterval.
func (f *clientFile) close() error {
	close(f.stop)
	select {
	case <-f.stopped:
		return f.file.Close()
	case <-time.After(writeRetryInterval):
		return nil // the write ends with the process
	}
}
