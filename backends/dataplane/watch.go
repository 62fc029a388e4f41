package dataplane

import (
	"context"
	"time"
)

// watchInterval is how often WatchBy looks.
const watchInterval = 2 * time.Second

// WatchBy is a Watch for backends that hear of nothing by themselves: it has them look every two seconds until ctx ends. look
// is given the time for the faults that it reports.
func WatchBy(ctx context.Context, look func(now time.Time)) error {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			look(now)
		}
	}
}
