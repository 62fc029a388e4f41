// Package dumps reads lists of the kernel's by netlink.
package dumps

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Attempts is how often the kernel is asked for a list that changes while it is read.
const Attempts = 10

// Read reads a list. One that changed meanwhile may lack what is there, so that it is read anew: from half a list of interfaces it would follow
// that the others are gone. Where the list changes all the time the error is netlink.ErrDumpInterrupted, and there is no list.
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
