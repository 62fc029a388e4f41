package dumps

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestAListThatChangesWhileItIsReadIsReadAnew(t *testing.T) {
	// after answers that the list has changed so many times, each time with a part of it.
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
	require.Empty(t, found, "half a list is none")
}

func TestOtherErrorsOfListsAreNotTriedAgain(t *testing.T) {
	asked := 0
	_, err := Read(func() ([]int, error) {
		asked++
		return nil, unix.EPERM
	})
	require.ErrorIs(t, err, unix.EPERM)
	require.Equal(t, 1, asked)
}
