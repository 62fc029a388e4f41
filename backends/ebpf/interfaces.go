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

// errPutBack is what has happened and is over, so that it is reported each time that it happens.
var errPutBack = errors.New("it is back, packets in between were not balanced")

// xdpRefusedError says that XDP does not run where the operator wants it to run everywhere.
type xdpRefusedError struct{ error }

func (e xdpRefusedError) Unwrap() error { return e.error }

// attachFirst is attach at the start, instead of an earlier process's. An interface that the programs cannot be attached to keeps no other one from
// being served: Watch reports it and tries again. It is an error where there is no other one, and where the operator wants XDP everywhere.
func (k *kernel) attachFirst() error {
	failed, err := k.attachAll()
	if err != nil {
		return err
	}
	all := errors.Join(inOrder(failed)...)
	if errors.As(all, new(xdpRefusedError)) || len(k.attached) == 0 {
		return all
	}
	return nil
}

// inOrder are the failures in the order of the interfaces' numbers.
func inOrder(failed map[int]error) (errs []error) {
	for _, index := range slices.Sorted(maps.Keys(failed)) {
		errs = append(errs, failed[index])
	}
	return errs
}

// attach runs the programs on interfaces that have come, and puts back what was taken away. The error is what is new.
func (k *kernel) attach() error {
	failed, err := k.attachAll()
	return errors.Join(append(k.news(failed), err)...)
}

// news are the failures that have not been reported yet, in the order of the interfaces.
func (k *kernel) news(failed map[int]error) (news []error) {
	for index := range k.reported {
		if failed[index] == nil || errors.Is(failed[index], errPutBack) {
			delete(k.reported, index)
			if at := k.attached[index]; at != nil {
				fmt.Fprintf(os.Stderr, "interface %s: the programs run there now\n", at.name)
			}
		}
	}
	for _, index := range slices.Sorted(maps.Keys(failed)) {
		err := failed[index]
		if errors.Is(err, errPutBack) {
			news = append(news, err)
		} else if k.reported[index] != err.Error() {
			k.reported[index] = err.Error()
			news = append(news, err)
		}
	}
	return news
}

// attachAll sees to every Ethernet interface that is there. It returns what failed at which.
func (k *kernel) attachAll() (failed map[int]error, err error) {
	links, err := listInterfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	failed = map[int]error{}
	newcomers := k.newcomers()
	for _, l := range links {
		a := l.Attrs()
		if a.EncapType != "ether" {
			continue
		}
		if err := k.attachOrRestore(l, newcomers); err != nil {
			failed[a.Index] = fmt.Errorf("interface %s: %w", a.Name, err)
		}
	}
	k.letGo(links)
	return failed, k.describe(links)
}

// attachOrRestore attaches to an interface that is new, and to one that has taken the number of another. At others it puts a filter back that
// was taken away.
func (k *kernel) attachOrRestore(l netlink.Link, newcomers newcomers) error {
	a := l.Attrs()
	at := k.attached[a.Index]
	if at == nil {
		if wait, err := newcomers.wait(l); err != nil || wait {
			return err
		}
		return k.attachNew(a)
	}
	at.name = a.Name
	off, err := at.off(a.Index)
	if err != nil {
		return err
	}
	if off {
		return k.attachAnew(a, at)
	}
	if f, ok := at.tc.(*filter); ok {
		return f.restore(k.objects.LbTc)
	}
	return nil
}

func (k *kernel) attachNew(a *netlink.LinkAttrs) error {
	at, err := k.attachTo(a)
	if errors.Is(err, unix.ENODEV) {
		return nil // it has gone
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	k.attached[a.Index] = at
	return nil
}

// attachAnew attaches to an interface that runs the programs no more.
func (k *kernel) attachAnew(a *netlink.LinkAttrs, at *attached) error {
	delete(k.attached, a.Index)
	err := errors.Join(at.close(), k.attachNew(a))
	if err != nil || k.attached[a.Index] == nil {
		return err
	}
	return fmt.Errorf("the program was detached, with an interface that had this one's number or by hand (bpftool link detach): %w", errPutBack)
}

// off tells whether a link has lost its interface. The kernel takes it off when the interface goes, and not back when another one gets its number.
func (at *attached) off(index int) (bool, error) {
	for _, h := range at.hooks() {
		l, ok := h.(link.Link)
		if !ok {
			continue
		}
		info, err := l.Info()
		if err != nil {
			return false, fmt.Errorf("look after the program: %w", err)
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

// letGo forgets interfaces that are gone.
func (k *kernel) letGo(links []netlink.Link) {
	is := map[int]bool{}
	for _, l := range links {
		is[l.Attrs().Index] = true
	}
	maps.DeleteFunc(k.since, func(index int, _ time.Time) bool { return !is[index] })
	for index, at := range k.attached {
		if is[index] {
			continue
		}
		for _, h := range at.hooks() {
			_ = h.Unpin()
			_ = h.Close()
		}
		delete(k.attached, index)
	}
}
