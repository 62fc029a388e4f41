package report

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestADataplaneThatDoesNotAnswerForAWhileServesNothingThatIsKnown(t *testing.T) {
	began := time.Now()
	after := func(d time.Duration) time.Time { return began.Add(d) }
	var c Counters
	c.NoteAnswer(errors.New("deadline exceeded"), began, false)
	require.Empty(t, c.Unanswered(after(CountLimit)), "once it may have been busy")
	c.NoteAnswer(errors.New("deadline exceeded"), after(CountLimit+time.Second), false)
	require.NotEmpty(t, c.Unanswered(after(2*CountLimit+time.Second)))
	c.NoteAnswer(nil, after(time.Minute), false)
	require.Empty(t, c.Unanswered(after(2*time.Minute)))
	c.NoteAnswer(errors.New("a dump was interrupted"), after(time.Hour), false)
	require.Empty(t, c.Unanswered(after(time.Hour+time.Second)))
}

func TestADataplaneIsNotSilentThatWorksOnACall(t *testing.T) {
	late, now := errors.New("deadline exceeded"), time.Now()
	var c Counters
	c.NoteAnswer(late, now.Add(-time.Minute), true)
	require.Empty(t, c.Unanswered(now), "counters wait for their turn")
	c.NoteAnswer(late, now.Add(-time.Minute), false)
	require.Equal(t, "deadline exceeded", c.Unanswered(now))
}

func TestCountersAreReadOnceAtATimeAndSoonAgainAfterAFailure(t *testing.T) {
	var c Counters
	now := time.Now()
	asks := func() bool {
		_, is := c.Ask(CountEvery, now)
		return is
	}
	require.True(t, asks())
	now = now.Add(time.Hour)
	require.False(t, asks(), "that is under way")
	c.Answered()
	ago, is := c.Ask(CountEvery, now)
	require.True(t, is)
	require.Equal(t, time.Hour, ago)
	c.Answered()
	now = now.Add(CountEvery - 1)
	require.False(t, asks())
	c.NoteAnswer(errors.New("deadline exceeded"), now, false)
	require.True(t, asks())
}
