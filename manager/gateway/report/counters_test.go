package report

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestADataplaneWithoutAnAnswerForAWhileIsSilent(t *testing.T) {
	began := time.Now()
	after := func(d time.Duration) time.Time { return began.Add(d) }
	var c Counters
	c.SetResult(errors.New("deadline exceeded"), began, false)
	require.Empty(t, c.Problem(after(CountTimeout)), "a single failure may mean that it is busy")
	c.SetResult(errors.New("deadline exceeded"), after(CountTimeout+time.Second), false)
	require.NotEmpty(t, c.Problem(after(2*CountTimeout+time.Second)))
	c.SetResult(nil, after(time.Minute), false)
	require.Empty(t, c.Problem(after(2*time.Minute)))
	c.SetResult(errors.New("a dump was interrupted"), after(time.Hour), false)
	require.Empty(t, c.Problem(after(time.Hour+time.Second)))
}

func TestADataplaneThatWorksOnACallIsNotSilent(t *testing.T) {
	late, now := errors.New("deadline exceeded"), time.Now()
	var c Counters
	c.SetResult(late, now.Add(-time.Minute), true)
	require.Empty(t, c.Problem(now), "counters wait for the call")
	c.SetResult(late, now.Add(-time.Minute), false)
	require.Equal(t, "deadline exceeded", c.Problem(now))
}

func TestCountersAreReadOnceAtATimeAndSoonAgainAfterAFailure(t *testing.T) {
	var c Counters
	now := time.Now()
	asks := func() bool {
		_, is := c.Start(CountInterval, now)
		return is
	}
	require.True(t, asks())
	now = now.Add(time.Hour)
	require.False(t, asks(), "a read is under way")
	c.Done()
	ago, is := c.Start(CountInterval, now)
	require.True(t, is)
	require.Equal(t, time.Hour, ago)
	c.Done()
	now = now.Add(CountInterval - 1)
	require.False(t, asks())
	c.SetResult(errors.New("deadline exceeded"), now, false)
	require.True(t, asks())
}
