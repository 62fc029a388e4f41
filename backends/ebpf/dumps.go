package ebpf

import (
	"errors"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
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

// hasFilters tells whether there is any filter under the parent, or a table that is to have some, which listFilters does not show.
func hasFilters(index int, parent uint32) (bool, error) {
	found, err := dump(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
		request.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Parent: parent})
		return request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
	})
	return len(found) > 0, err
}
