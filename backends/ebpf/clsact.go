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

// firstPriority is where the program stands among the filters of an interface: before all others that it can be put before. The program
// takes only what belongs to a frontend and leaves all else to the next filter. Another program that ends the walk, as Cilium's does
// (priority 1), or Calico's (49152), would hide packets from it.
const firstPriority = 1

// filter is the program at an interface's ingress as a filter of the queueing discipline clsact, or of ingress where somebody else has that.
// It outlives the plugin. It satisfies hook.
type filter struct {
	index int
	// name says which gateway's filter it is, since filters of others may have the same priority.
	name string
	// mark is a directory that is there when this gateway made the queueing discipline.
	mark string
}

func (k *kernel) filter(index int) *filter {
	return &filter{index: index, name: filepath.Base(k.dir), mark: k.pin("clsact", index)}
}

// handle is the filter's number among the filters of its priority. It follows from the name, so that no other gateway's filter is replaced.
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

// own is the gateway's filter among those that were found; nil if it is not there.
func (f *filter) own(found []netlink.Filter) *netlink.BpfFilter {
	for _, other := range found {
		if b, ok := other.(*netlink.BpfFilter); ok && b.Handle == f.handle() && b.Name == f.name {
			return b
		}
	}
	return nil
}

// attach runs the program in place of an earlier process's, without a packet in between that meets neither.
func (f *filter) attach(program *ebpf.Program) error {
	found, err := f.list()
	if err != nil {
		return err
	}
	if own := f.own(found); own != nil {
		return f.replace(program, own.Priority)
	}
	if err := f.enter(found); err != nil {
		return err
	}
	if err := f.add(program, takenPriorities(found)); err != nil {
		return errors.Join(fmt.Errorf("add filter (needs a kernel with cls_bpf): %w", err), f.leave())
	}
	return nil
}

// replace has the kernel put the program in the place of the one that runs, at once.
func (f *filter) replace(program *ebpf.Program, priority uint16) error {
	if err := netlink.FilterReplace(f.running(program, priority)); err != nil {
		return fmt.Errorf("replace filter: %w", err)
	}
	return nil
}

// enter makes the place for filters, unless there is one.
func (f *filter) enter(found []netlink.Filter) error {
	err := netlink.QdiscAdd(f.entrance())
	if errors.Is(err, unix.EEXIST) {
		if onlyKubeLB(found) {
			return makeMark(f.mark)
		}
		return f.Unpin()
	}
	if err != nil {
		return fmt.Errorf("queueing discipline clsact (needs a kernel with sch_ingress): %w", err)
	}
	return makeMark(f.mark)
}

func makeMark(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// onlyKubeLB tells whether all filters, and there are some, are KubeLB's. Then another dataplane of it has made the place, and whichever
// leaves last takes it away.
func onlyKubeLB(found []netlink.Filter) bool {
	for _, other := range found {
		if b, ok := other.(*netlink.BpfFilter); !ok || !strings.HasPrefix(b.Name, "kubelb") {
			return false
		}
	}
	return len(found) > 0
}

// takenPriorities are those that the program cannot have: filters of one priority are of one kind and one protocol.
func takenPriorities(found []netlink.Filter) map[uint16]bool {
	taken := map[uint16]bool{}
	for _, other := range found {
		if other.Type() != "bpf" || other.Attrs().Protocol != unix.ETH_P_ALL {
			taken[other.Attrs().Priority] = true
		}
	}
	return taken
}

// priorityAttempts is how many priorities are tried.
const priorityAttempts = 16

// add has the program run at the first priority that it can have. The list of filters does not show all that are taken: not that of a table of
// u32's without filters, and not what has come since. The kernel answers EINVAL where another kind or protocol has it.
func (f *filter) add(program *ebpf.Program, taken map[uint16]bool) (err error) {
	priority := uint16(firstPriority)
	for range priorityAttempts {
		for taken[priority] {
			priority++
		}
		err = netlink.FilterAdd(f.running(program, priority))
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL) {
			break
		}
		priority++
	}
	return err
}

func (f *filter) entrance() netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: f.index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
}

func (f *filter) running(program *ebpf.Program, priority uint16) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: f.index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: f.handle(), Priority: priority, Protocol: unix.ETH_P_ALL},
		Fd: program.FD(), Name: f.name, DirectAction: true}
}

// Update replaces the program. The error is ENOLINK, as that of a link, where the filter is not there.
func (f *filter) Update(program *ebpf.Program) error {
	found, err := f.list()
	if err != nil {
		return err
	}
	own := f.own(found)
	if own == nil {
		return unix.ENOLINK
	}
	return f.replace(program, own.Priority)
}

// Detach takes the program away, and the place for filters if the gateway made it and nobody else uses it.
func (f *filter) Detach() error {
	found, err := f.list()
	if err != nil {
		return err
	}
	if own := f.own(found); own != nil {
		if err := netlink.FilterDel(own); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete filter: %w", err)
		}
	}
	return f.leave()
}

func (f *filter) leave() error {
	if _, err := os.Stat(f.mark); errors.Is(err, fs.ErrNotExist) {
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
	// Somebody may have taken it away.
	if err := netlink.QdiscDel(f.entrance()); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete queueing discipline clsact: %w", err)
	}
	return f.Unpin()
}

// Unpin forgets that the gateway made the place for filters.
func (f *filter) Unpin() error {
	if err := os.Remove(f.mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Close does nothing: the filter holds no file descriptor.
func (f *filter) Close() error { return nil }

// restore puts the filter back where it was taken away, and returns an error that says so.
func (f *filter) restore(program *ebpf.Program) error {
	found, err := f.list()
	if err != nil || f.own(found) != nil {
		return err
	}
	err = f.attach(program)
	if errors.Is(err, unix.ENODEV) {
		return nil // the interface has gone
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("the program's filter was taken away (tc filter or tc qdisc): %w", errPutBack)
}
