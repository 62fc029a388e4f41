package dataplane

import (
	"context"
	"time"
)

// WatchInterval is how often backends look for what concerns no packet.
const WatchInterval = 2 * time.Second

// Poll is a Watch for backends that hear of nothing by themselves: it has them look this often until ctx ends. look is given the time for
// the faults that it reports.
func Poll(ctx context.Context, every time.Duration, look func(now time.Time)) error {
	ticker := time.NewTicker(every)
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
