package broken

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The programs of BPF that mutations leave do nothing but pass packets on.
const (
	xdpPass = 2
	tcxNext = -1 // TCX_NEXT and TC_ACT_UNSPEC
)

func onFront(leave func(netlink.Link) error) error {
	link, err := netlink.LinkByName("front")
	if err != nil {
		return err
	}
	return leave(link)
}

func leaveFilter(string) error {
	return onFront(func(link netlink.Link) error {
		if err := run("tc", "qdisc", "add", "dev", "front", "clsact"); err != nil {
			return err
		}
		fd, err := loadProgram(unix.BPF_PROG_TYPE_SCHED_CLS, tcxNext)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 77, Protocol: unix.ETH_P_ALL},
			Fd: fd, Name: "left", DirectAction: true})
	})
}

func leaveXDP(link netlink.Link) error {
	fd, err := loadProgram(unix.BPF_PROG_TYPE_XDP, xdpPass)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const generic = 1 << 1 // XDP_FLAGS_SKB_MODE
	return netlink.LinkSetXdpFdWithFlags(link, fd, generic)
}

func leaveTCX(link netlink.Link) error {
	fd, err := loadProgram(unix.BPF_PROG_TYPE_SCHED_CLS, tcxNext)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attach := struct{ index, program, hook, flags uint32 }{uint32(link.Attrs().Index), uint32(fd), unix.BPF_TCX_EGRESS, 0}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("attach a program: %w", err)
	}
	return nil
}

func leavePinned(string) error {
	create := struct{ kind, key, value, entries uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1}
	fd, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	if err != nil {
		return fmt.Errorf("create a map: %w", err)
	}
	defer unix.Close(fd)
	path := []byte("/sys/fs/bpf/left\x00")
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&path[0])
	pin := struct {
		path  uint64
		fd, _ uint32
	}{path: uint64(uintptr(unsafe.Pointer(&path[0]))), fd: uint32(fd)}
	if _, err := bpf(unix.BPF_OBJ_PIN, unsafe.Pointer(&pin), unsafe.Sizeof(pin)); err != nil {
		return fmt.Errorf("pin a map: %w", err)
	}
	return nil
}

// loadProgram loads a program that returns a value.
func loadProgram(kind uint32, value int32) (int, error) {
	// The instructions are r0 = value; exit (Documentation/bpf/standardization/instruction-set.rst).
	instructions := [2]struct {
		code, registers uint8
		offset          int16
		immediate       int32
	}{{code: 0xb7, immediate: value}, {code: 0x95}}
	license := []byte("GPL\x00")
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&instructions)
	pinner.Pin(&license[0])
	load := struct {
		kind, count           uint32
		instructions, license uint64
	}{kind, uint32(len(instructions)), uint64(uintptr(unsafe.Pointer(&instructions))), uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return -1, fmt.Errorf("load a program: %w", err)
	}
	return fd, nil
}

func bpf(command uintptr, attributes unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attributes), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
