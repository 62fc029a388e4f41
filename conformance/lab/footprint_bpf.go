package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bpfDir is where each gateway has a BPF file system of its own (netlab.MountBPF).
const bpfDir = "/sys/fs/bpf"

// pinned returns the pinned BPF objects and their directories.
func pinned() (Footprint, error) {
	found, err := FilesIn(Pinned, bpfDir)
	for i, p := range found {
		found[i].remove = func() error { return os.RemoveAll(filepath.Join(bpfDir, p.Text)) }
	}
	return found, err
}

// maxPrograms is the number of programs at one hook that are listed at most. The kernel allows 64 (BPF_MPROG_MAX).
const maxPrograms = 64

// bpfQuery is the part of union bpf_attr for BPF_PROG_QUERY (include/uapi/linux/bpf.h).
type bpfQuery struct {
	index, hook, flags, attachFlags uint32
	programs                        uint64
	count, _                        uint32
	programFlags, links, linkFlags  uint64
	revision                        uint64
}

// programsOf returns the programs that are attached to an interface without a filter (tcx).
func programsOf(link netlink.Link) (Footprint, error) {
	var out Footprint
	for name, hook := range map[string]uint32{"ingress": unix.BPF_TCX_INGRESS, "egress": unix.BPF_TCX_EGRESS} {
		links, err := linksAt(uint32(link.Attrs().Index), hook)
		if err != nil {
			if isMissing(err) { // before Linux 6.6
				continue
			}
			return nil, fmt.Errorf("list programs at %s: %w", name, err)
		}
		for _, id := range links {
			p := Piece{Kind: TCX, Text: fmt.Sprintf("program at %s of %s", name, link.Attrs().Name)}
			if id != 0 {
				p.remove = func() error { return detachLink(id) }
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// linksAt returns the links of the programs at a hook of an interface. The link of a program that is attached without one is 0.
func linksAt(index, hook uint32) ([]uint32, error) {
	programs, links := new([maxPrograms]uint32), new([maxPrograms]uint32)
	var pinner runtime.Pinner // the kernel writes to both
	defer pinner.Unpin()
	pinner.Pin(programs)
	pinner.Pin(links)
	q := bpfQuery{index: index, hook: hook, count: maxPrograms, programs: uint64(uintptr(unsafe.Pointer(programs))), links: uint64(uintptr(unsafe.Pointer(links)))}
	if err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&q), unsafe.Sizeof(q)); err != nil {
		return nil, err
	}
	return links[:min(q.count, maxPrograms)], nil
}

// detachLink detaches a program from its hook, as bpftool link detach does.
func detachLink(id uint32) error {
	get := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpfFD(unix.BPF_LINK_GET_FD_BY_ID, unsafe.Pointer(&get), unsafe.Sizeof(get))
	if err != nil {
		return err
	}
	detach := struct{ fd uint32 }{uint32(fd)}
	return errors.Join(bpf(unix.BPF_LINK_DETACH, unsafe.Pointer(&detach), unsafe.Sizeof(detach)), unix.Close(fd))
}

func bpf(command uintptr, attributes unsafe.Pointer, size uintptr) error {
	_, err := bpfFD(command, attributes, size)
	return err
}

func bpfFD(command uintptr, attributes unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attributes), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
