package hostcheck

import (
	"context"
	"time"
)

// CachedTime returns a function that calls ask once in each interval, and in between adds the elapsed monotonic time to the last answer. It is for one
// goroutine.
func CachedTime(ask func(context.Context) (time.Time, error), every time.Duration) func(context.Context) (time.Time, error) {
	var (
		last, answer time.Time
		failed       error
	)
	return func(ctx context.Context) (time.Time, error) {
		if last.IsZero() || time.Since(last) >= every {
			answer, failed = ask(ctx)
			last = time.Now()
		}
		if failed != nil {
			return time.Time{}, failed
		}
		return answer.Add(time.Since(last)), nil
	}
}
