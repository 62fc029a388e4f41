package ebpf

import (
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

func listInterfaces() ([]netlink.Link, error) { return dumps.Read(netlink.LinkList) }

// listFilters returns the filters of an interface under the parent, in the order in which they run.
func listFilters(at netlink.Link, parent uint32) ([]netlink.Filter, error) {
	return dumps.Read(func() ([]netlink.Filter, error) { return netlink.FilterList(at, parent) })
}

// hasFilters tells whether there is a filter under the parent, or a u32 table without filters, which listFilters does not show.
func hasFilters(index int, parent uint32) (bool, error) {
	found, err := dumps.Read(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
		request.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Parent: parent})
		return request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
	})
	return len(found) > 0, err
}
