package ebpf

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpAttempts is how often the kernel is asked for a list that changes while it is read.
const dumpAttempts = 5

// dump reads a list of the kernel's. One that changed meanwhile may lack what is there, so that it is read anew: from half a list of interfaces
// it would follow that the others are gone. Where it changes all the time the error says so, and the next look asks again.
func dump[T any](read func() ([]T, error)) (found []T, err error) {
	for range dumpAttempts {
		if found, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}

func listInterfaces() ([]netlink.Link, error) { return dump(netlink.LinkList) }

// listFilters returns the filters of an interface under the parent, in the order in which packets meet them.
func listFilters(at netlink.Link, parent uint32) ([]netlink.Filter, error) {
	return dump(func() ([]netlink.Filter, error) { return netlink.FilterList(at, parent) })
}
