package hostcheck

import (
	"context"
	"time"
)

// Seldom asks for a time once in every while, and reckons from the answer meanwhile, by the clock that no one sets. It is for one goroutine.
func Seldom(ask func(context.Context) (time.Time, error), every time.Duration) func(context.Context) (time.Time, error) {
	var (
		asked, told time.Time
		failed      error
	)
	return func(ctx context.Context) (time.Time, error) {
		if asked.IsZero() || time.Since(asked) >= every {
			told, failed = ask(ctx)
			asked = time.Now()
		}
		if failed != nil {
			return time.Time{}, failed
		}
		return told.Add(time.Since(asked)), nil
	}
}
