package gateway

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAGatewayStandsAtOnceWhereThereIsNoOther(t *testing.T) {
	var c candidacy
	now := time.Now()
	require.False(t, c.stands(false, false, now))
	require.True(t, c.stands(true, false, now))
	require.True(t, c.stands(true, true, now), "that another one comes ends nothing")
}

func TestAGatewayThatComesBackStandsAfterItWasWellForAWhileAndLaterEachTime(t *testing.T) {
	var c candidacy
	now := time.Now()
	wait := returnAfter
	for range 12 {
		require.False(t, c.stands(true, true, now))
		require.False(t, c.stands(true, true, now.Add(wait-1)), wait)
		now = now.Add(wait)
		require.True(t, c.stands(true, true, now), wait)
		require.False(t, c.stands(false, true, now))
		wait = min(2*wait, returnAtMost)
	}
	now = now.Add(flappingWithin + 1)
	require.False(t, c.stands(true, true, now))
	now = now.Add(returnAtMost)
	require.True(t, c.stands(true, true, now))
	require.False(t, c.stands(false, true, now))
	require.Equal(t, 2*returnAfter, c.wait(), "what was long ago counts no more")
}
