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

// setupTime is how long no clsact is added to an interface that may belong to a new pod. During the setup of a pod the CNI plugin bandwidth adds its own queueing
// discipline to the interface. If there is one already, the plugin fails, and the pod does not start. Before that another plugin creates the interface and may wait
// for ten seconds until duplicate address detection of the pod's IPv6 address is done. After the setup, bandwidth does not change the interface any more.
const setupTime = time.Minute

// setupDelay tells which interfaces get no clsact yet. With tcx there are none: it needs no queueing discipline.
type setupDelay struct {
	*kernel
	now time.Time
	// withNetwork returns the interfaces that have an address with a network. It reads them at the first call.
	withNetwork func() (map[int]bool, error)
}

func (k *kernel) setupDelay() setupDelay {
	return setupDelay{kernel: k, now: time.Now(), withNetwork: sync.OnceValues(interfacesWithNetwork)}
}

// isWaiting tells whether the interface has to wait: a new veth interface without a network.
func (n setupDelay) isWaiting(l netlink.Link) (bool, error) {
	a := l.Attrs()
	if n.options.attach != attachClsact || l.Type() != "veth" {
		return false, nil
	}
	first, known := n.firstSeen[a.Index]
	if !known {
		if attached, err := n.wasAttached(a.Index); err != nil || attached {
			return false, err
		}
		first = n.now
		n.firstSeen[a.Index] = first
	}
	if n.now.Sub(first) >= setupTime {
		return false, nil
	}
	found, err := n.withNetwork()
	return !found[a.Index], err
}

// wasAttached tells whether an earlier process had attached a program to the interface, by either method. Such an interface does not wait.
func (k *kernel) wasAttached(index int) (bool, error) {
	f := k.filter(index)
	found, err := f.list()
	if err != nil {
		return false, err
	}
	_, err = os.Stat(k.pin("link", index))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("look for the program of an earlier process: %w", err)
	}
	return err == nil || f.find(found) != nil, nil
}

// interfacesWithNetwork returns the interfaces that have a global address with a network. The host's end of a pod's veth pair has no address, or one of a single
// host, which the CNI plugin ptp sets.
func interfacesWithNetwork() (map[int]bool, error) {
	addresses, err := dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[int]bool{}
	for _, a := range addresses {
		if ones, bits := a.Mask.Size(); ones < bits && a.IP.IsGlobalUnicast() {
			out[a.LinkIndex] = true
		}
	}
	return out, nil
}
