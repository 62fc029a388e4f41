package ebpf

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

// setupTime is how long clsact leaves alone what may be a pod's interface. While a pod is set up the CNI plugin bandwidth adds a queueing discipline
// of its own to the interface, and fails, and the pod with it, where one is there already. Before that another plugin makes the interface and may
// wait for ten seconds, until the pod's IPv6 address is known to be its own. Later on bandwidth touches the interface no more.
const setupTime = time.Minute

// newcomers tells which interfaces clsact is to leave alone for now. By tcx there are none: it needs no queueing discipline.
type newcomers struct {
	*kernel
	now time.Time
	// addressed are the interfaces that have an address of a network. It is asked for only where it matters.
	addressed func() (map[int]bool, error)
}

func (k *kernel) newcomers() newcomers {
	return newcomers{kernel: k, now: time.Now(), addressed: sync.OnceValues(addressed)}
}

// wait tells whether the interface is to be left alone: a veth that is no way to a network, and that has not been there for long.
func (n newcomers) wait(l netlink.Link) (bool, error) {
	a := l.Attrs()
	if n.options.attach != attachClsact || l.Type() != "veth" {
		return false, nil
	}
	first, known := n.since[a.Index]
	if !known {
		if served, err := n.servedBefore(a.Index); err != nil || served {
			return false, err
		}
		first = n.now
		n.since[a.Index] = first
	}
	if n.now.Sub(first) >= setupTime {
		return false, nil
	}
	is, err := n.addressed()
	return !is[a.Index], err
}

// servedBefore tells whether an earlier process had attached to the interface, in either way: then it goes on there without a gap.
func (k *kernel) servedBefore(index int) (bool, error) {
	f := k.filter(index)
	found, err := f.list()
	if err != nil {
		return false, err
	}
	_, err = os.Stat(k.pin("link", index))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("look for an earlier process's program: %w", err)
	}
	return err == nil || f.own(found) != nil, nil
}

// addressed are the interfaces with an address of a network beyond their link. A pod's end on the host has none, or one that is of no network but
// itself, as the CNI plugin ptp gives it.
func addressed() (map[int]bool, error) {
	addresses, err := dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	is := map[int]bool{}
	for _, a := range addresses {
		if ones, bits := a.Mask.Size(); ones < bits && a.IP.IsGlobalUnicast() {
			is[a.LinkIndex] = true
		}
	}
	return is, nil
}
