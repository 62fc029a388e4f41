// Package dumps reads lists from the kernel by netlink.
package dumps

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Attempts is how often a list is read that changes while it is read.
const Attempts = 10

// Read reads a list from the kernel. A list that changes during the read may be incomplete, and an interface that is missing in it would seem to be
// deleted. So Read then reads again. If the list changes every time, the error is netlink.ErrDumpInterrupted, and there is no list.
func Read[T any](read func() ([]T, error)) (found []T, err error) {
	err = Each(func() (err error) {
		found, err = read()
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Each calls read until the list does not change during the read, at most Attempts times. It serves lists that are too long to keep: read handles each entry,
// and discards at its begin what an earlier call found.
func Each(read func() error) (err error) {
	for range Attempts {
		if err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}
