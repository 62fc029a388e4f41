package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errRestored is a fault that is already repaired. It is reported each time, unlike a fault that lasts.
var errRestored = errors.New("it runs again; connections through this interface failed in between")

// xdpRefusedError reports an interface where XDP cannot run although the operator wants it on all of them.
type xdpRefusedError struct{ error }

func (e xdpRefusedError) Unwrap() error { return e.error }

// attachAtStart attaches the programs when the plugin starts, and replaces those of an earlier process. A failure at some interfaces is no error: Watch reports it
// and tries again. It is an error if no interface takes the programs, and if the operator wants XDP on all of them.
func (k *kernel) attachAtStart() error {
	failed, err := k.attachAll()
	if err != nil {
		return err
	}
	all := errors.Join(sortedErrors(failed)...)
	if errors.As(all, new(xdpRefusedError)) || len(k.attached) == 0 {
		return all
	}
	return nil
}

// sortedErrors returns the errors in the order of the interfaces' indexes.
func sortedErrors(failed map[int]error) (errs []error) {
	for _, index := range slices.Sorted(maps.Keys(failed)) {
		errs = append(errs, failed[index])
	}
	return errs
}

// attach attaches the programs to new interfaces, and restores programs that were detached. It returns only errors that were not reported before.
func (k *kernel) attach() error {
	failed, err := k.attachAll()
	return errors.Join(append(k.newFailures(failed), err)...)
}

// newFailures returns the failures that have not been reported yet, in the order of the interfaces' indexes.
func (k *kernel) newFailures(failed map[int]error) (failures []error) {
	for index := range k.reported {
		if failed[index] == nil || errors.Is(failed[index], errRestored) {
			delete(k.reported, index)
			if at := k.attached[index]; at != nil {
				fmt.Fprintf(os.Stderr, "interface %s: the programs are attached now\n", at.name)
			}
		}
	}
	for _, index := range slices.Sorted(maps.Keys(failed)) {
		err := failed[index]
		if errors.Is(err, errRestored) {
			failures = append(failures, err)
		} else if k.reported[index] != err.Error() {
			k.reported[index] = err.Error()
			failures = append(failures, err)
		}
	}
	return failures
}

// attachAll attaches the programs to all Ethernet interfaces. It returns the failures by interface index.
func (k *kernel) attachAll() (failed map[int]error, err error) {
	links, err := listInterfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	failed = map[int]error{}
	delay := k.setupDelay()
	for _, l := range links {
		a := l.Attrs()
		if a.EncapType != "ether" {
			continue
		}
		if err := k.attachOrRestore(l, delay); err != nil {
			failed[a.Index] = fmt.Errorf("interface %s: %w", a.Name, err)
		}
	}
	k.removeMissing(links)
	return failed, k.writeInterfaces(links)
}

// attachOrRestore attaches the programs to a new interface, and to one that has got the index of a removed one. At other interfaces it restores a filter that was
// deleted.
func (k *kernel) attachOrRestore(l netlink.Link, delay setupDelay) error {
	a := l.Attrs()
	at := k.attached[a.Index]
	if at == nil {
		if wait, err := delay.isWaiting(l); err != nil || wait {
			return err
		}
		return k.attachNew(a)
	}
	at.name = a.Name
	detached, err := at.isDetached(a.Index)
	if err != nil {
		return err
	}
	if detached {
		return k.reattach(a, at)
	}
	if f, ok := at.tc.(*filter); ok {
		return f.restore(k.objects.LbTc)
	}
	return nil
}

func (k *kernel) attachNew(a *netlink.LinkAttrs) error {
	at, err := k.attachTo(a)
	if errors.Is(err, unix.ENODEV) {
		return nil // the interface is gone
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	k.attached[a.Index] = at
	return nil
}

// reattach attaches the programs to an interface from which they were detached.
func (k *kernel) reattach(a *netlink.LinkAttrs, at *attached) error {
	delete(k.attached, a.Index)
	err := errors.Join(at.close(), k.attachNew(a))
	if err != nil || k.attached[a.Index] == nil {
		return err
	}
	return fmt.Errorf("the program was detached, either with a removed interface that had the same index or by hand (bpftool link detach): %w", errRestored)
}

// isDetached tells whether a link has no interface any more. The kernel detaches it when the interface is removed, and does not attach it to a new interface with the
// same index.
func (at *attached) isDetached(index int) (bool, error) {
	for _, h := range at.hooks() {
		l, ok := h.(link.Link)
		if !ok {
			continue
		}
		info, err := l.Info()
		if err != nil {
			return false, fmt.Errorf("read the state of the program's link: %w", err)
		}
		if tcx := info.TCX(); tcx != nil && int(tcx.Ifindex) != index {
			return true, nil
		}
		if xdp := info.XDP(); xdp != nil && int(xdp.Ifindex) != index {
			return true, nil
		}
	}
	return false, nil
}

// removeMissing removes the state of interfaces that are gone.
func (k *kernel) removeMissing(links []netlink.Link) {
	present := map[int]bool{}
	for _, l := range links {
		present[l.Attrs().Index] = true
	}
	maps.DeleteFunc(k.firstSeen, func(index int, _ time.Time) bool { return !present[index] })
	for index, at := range k.attached {
		if present[index] {
			continue
		}
		for _, h := range at.hooks() {
			_ = h.Unpin()
			_ = h.Close()
		}
		delete(k.attached, index)
	}
}
