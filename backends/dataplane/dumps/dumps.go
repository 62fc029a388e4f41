// Package dumps reads lists from the kernel by netlink.
package dumps

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Attempts is how often Read reads a list that changes while it is read.
const Attempts = 10

// Read reads a list. It reads again if the list changed meanwhile, since the result may be incomplete: interfaces that it lacks would seem to be
// gone. If the list changes every time, the error is netlink.ErrDumpInterrupted, and there is no list.
func Read[T any](read func() ([]T, error)) (found []T, err error) {
	for range Attempts {
		if found, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}
