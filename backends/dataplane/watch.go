package dataplane

import (
	"context"
	"time"
)

// WatchInterval is how often plugins check for changes that do not affect packets at once.
const WatchInterval = 2 * time.Second

// Poll is a Watch for plugins that get no events: it calls check at this interval until ctx ends, with the time for the faults that it
// reports.
func Poll(ctx context.Context, interval time.Duration, check func(now time.Time)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			check(now)
		}
	}
}
