package dumps

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestAListThatChangesWhileItIsReadIsReadAgain(t *testing.T) {
	// after returns a list that changes during the first calls, which return a part of it.
	after := func(interruptions int) func() ([]int, error) {
		return func() ([]int, error) {
			if interruptions--; interruptions >= 0 {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, nil
		}
	}
	for _, interruptions := range []int{0, 1, Attempts - 1} {
		found, err := Read(after(interruptions))
		require.NoError(t, err)
		require.Equal(t, []int{1, 2}, found)
	}
	found, err := Read(after(Attempts))
	require.ErrorIs(t, err, netlink.ErrDumpInterrupted)
	require.Empty(t, found, "an incomplete list is not returned")
}

func TestOtherErrorsAreReturnedAtOnce(t *testing.T) {
	calls := 0
	_, err := Read(func() ([]int, error) {
		calls++
		return nil, unix.EPERM
	})
	require.ErrorIs(t, err, unix.EPERM)
	require.Equal(t, 1, calls)
}

func TestEntriesOfAnInterruptedListAreSeenAgainFromTheBeginning(t *testing.T) {
	interruptions, sum := 1, 0
	require.NoError(t, Each(func() error {
		sum = 1
		if interruptions--; interruptions >= 0 {
			return netlink.ErrDumpInterrupted
		}
		sum += 2
		return nil
	}))
	require.Equal(t, 3, sum)
	calls := 0
	require.ErrorIs(t, Each(func() error {
		calls++
		return netlink.ErrDumpInterrupted
	}), netlink.ErrDumpInterrupted)
	require.Equal(t, Attempts, calls)
}
