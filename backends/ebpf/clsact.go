package ebpf

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstPriority is the priority of the program among the filters of an interface. It runs first because it handles only packets of frontends, and leaves all others
// to the next filter. Other programs end the walk, for example those of Cilium (priority 1) and Calico (49152): a later filter would not see these packets.
const firstPriority = 1

// filter runs the program as a filter at an interface's ingress. The filter belongs to the queueing discipline clsact, or to ingress if the interface has that one. It
// outlives the plugin. It implements hook.
type filter struct {
	index int
	// name is unique for this gateway, since filters of other programs may have the same priority.
	name string
	// marker is a directory that exists if this gateway created the queueing discipline.
	marker string
}

func (k *kernel) filter(index int) *filter {
	return &filter{index: index, name: filepath.Base(k.dir), marker: k.pin("clsact", index)}
}

// handle is the filter's number among the filters of its priority. It is a hash of the name, so that no filter of another gateway is replaced.
func (f *filter) handle() uint32 {
	sum := sha256.Sum256([]byte(f.name))
	return binary.BigEndian.Uint32(sum[:]) | 1 // 0 would let the kernel choose
}

func (f *filter) device() netlink.Link {
	return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: f.index}}
}

// list returns the filters at the interface's ingress, in the order in which packets meet them.
func (f *filter) list() ([]netlink.Filter, error) {
	found, err := listFilters(f.device(), netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	return found, nil
}

// find returns this gateway's filter, or nil if it is not among the filters.
func (f *filter) find(found []netlink.Filter) *netlink.BpfFilter {
	for _, other := range found {
		if b, ok := other.(*netlink.BpfFilter); ok && b.Handle == f.handle() && b.Name == f.name {
			return b
		}
	}
	return nil
}

// attach attaches the program, or replaces the program of an earlier process. Every packet meets one of the two.
func (f *filter) attach(program *ebpf.Program) error {
	found, err := f.list()
	if err != nil {
		return err
	}
	if own := f.find(found); own != nil {
		return f.replace(program, own.Priority)
	}
	if err := f.ensureQdisc(found); err != nil {
		return err
	}
	if err := f.add(program, usedPriorities(found)); err != nil {
		return errors.Join(fmt.Errorf("add filter (needs a kernel with cls_bpf): %w", err), f.removeQdisc())
	}
	return nil
}

// replace replaces the running program in one step.
func (f *filter) replace(program *ebpf.Program, priority uint16) error {
	if err := netlink.FilterReplace(f.netlinkFilter(program, priority)); err != nil {
		return fmt.Errorf("replace filter: %w", err)
	}
	return nil
}

// ensureQdisc adds the queueing discipline for filters, if there is none.
func (f *filter) ensureQdisc(found []netlink.Filter) error {
	err := netlink.QdiscAdd(f.qdisc())
	if errors.Is(err, unix.EEXIST) {
		if allKubeLB(found) {
			return createMarker(f.marker)
		}
		return f.Unpin()
	}
	if err != nil {
		return fmt.Errorf("queueing discipline clsact (needs a kernel with sch_ingress): %w", err)
	}
	return createMarker(f.marker)
}

func createMarker(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// allKubeLB tells whether there are filters, and all are KubeLB's. Then another dataplane of KubeLB has added the queueing discipline, and the last one that is purged
// removes it.
func allKubeLB(found []netlink.Filter) bool {
	for _, other := range found {
		if b, ok := other.(*netlink.BpfFilter); !ok || !strings.HasPrefix(b.Name, "kubelb") {
			return false
		}
	}
	return len(found) > 0
}

// usedPriorities returns the priorities that the program cannot have: all filters of a priority have the same kind and protocol.
func usedPriorities(found []netlink.Filter) map[uint16]bool {
	taken := map[uint16]bool{}
	for _, other := range found {
		if other.Type() != "bpf" || other.Attrs().Protocol != unix.ETH_P_ALL {
			taken[other.Attrs().Priority] = true
		}
	}
	return taken
}

// priorityAttempts is the number of priorities that add tries.
const priorityAttempts = 16

// add adds the filter at the first possible priority. The list of filters does not show all used priorities: it misses u32 tables without filters, and filters that
// were added since. The kernel returns EINVAL if a filter of another kind or protocol has the priority.
func (f *filter) add(program *ebpf.Program, taken map[uint16]bool) (err error) {
	priority := uint16(firstPriority)
	for range priorityAttempts {
		for taken[priority] {
			priority++
		}
		err = netlink.FilterAdd(f.netlinkFilter(program, priority))
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL) {
			break
		}
		priority++
	}
	return err
}

func (f *filter) qdisc() netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: f.index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
}

func (f *filter) netlinkFilter(program *ebpf.Program, priority uint16) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: f.index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: f.handle(), Priority: priority, Protocol: unix.ETH_P_ALL},
		Fd: program.FD(), Name: f.name, DirectAction: true}
}

// Update replaces the program. Like that of a link, the error is ENOLINK if the filter is not there.
func (f *filter) Update(program *ebpf.Program) error {
	found, err := f.list()
	if err != nil {
		return err
	}
	own := f.find(found)
	if own == nil {
		return unix.ENOLINK
	}
	return f.replace(program, own.Priority)
}

// Detach deletes the filter, and the queueing discipline if this gateway added it and no other filter uses it.
func (f *filter) Detach() error {
	found, err := f.list()
	if err != nil {
		return err
	}
	if own := f.find(found); own != nil {
		if err := netlink.FilterDel(own); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete filter: %w", err)
		}
	}
	return f.removeQdisc()
}

func (f *filter) removeQdisc() error {
	if _, err := os.Stat(f.marker); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		used, err := hasFilters(f.index, parent)
		if err != nil {
			return fmt.Errorf("list filters: %w", err)
		}
		if used {
			return f.Unpin()
		}
	}
	// Another program may have deleted it.
	if err := netlink.QdiscDel(f.qdisc()); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete queueing discipline clsact: %w", err)
	}
	return f.Unpin()
}

// Unpin removes the marker: from then on the queueing discipline belongs to other programs.
func (f *filter) Unpin() error {
	if err := os.Remove(f.marker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Close does nothing: the filter holds no file descriptor.
func (f *filter) Close() error { return nil }

// restore adds the filter again if it was deleted, and returns an error that reports this.
func (f *filter) restore(program *ebpf.Program) error {
	found, err := f.list()
	if err != nil || f.find(found) != nil {
		return err
	}
	err = f.attach(program)
	if errors.Is(err, unix.ENODEV) {
		return nil // the interface has gone
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("another program deleted the filter (as tc filter or tc qdisc do): %w", errRestored)
}
