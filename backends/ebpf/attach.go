package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// The values of the option xdp.
const (
	xdpAuto    = "auto"    // where a device is behind the interface and its driver can
	xdpNative  = "native"  // on every interface, or it is an error
	xdpGeneric = "generic" // on every interface, in the kernel's own way: for tests, since it is slower than none
	xdpOff     = "off"
)

var xdpModes = []string{xdpAuto, xdpNative, xdpGeneric, xdpOff}

// attached is what runs at an interface.
type attached struct {
	name     string
	tcx, xdp link.Link
	// written is what the XDP program knows of it; nil if that is not known yet.
	written *networkInterface
}

func (at *attached) links() []link.Link {
	if at.xdp == nil {
		return []link.Link{at.tcx}
	}
	return []link.Link{at.tcx, at.xdp}
}

// detach ends the programs before it returns. Without it the kernel would do so some time after the last reference to the link, that
// of the pin, is gone, and not while another process has it open.
func (at *attached) detach() error {
	var errs []error
	for _, l := range at.links() {
		errs = append(errs, l.Detach())
	}
	return errors.Join(errs...)
}

// attach runs the programs on every Ethernet interface that is there, instead of an earlier process's.
func (k *kernel) attach() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		if a.EncapType != "ether" {
			continue
		}
		at := k.attached[a.Index]
		if at == nil {
			if at, err = k.attachTo(a); err != nil {
				return fmt.Errorf("attach to interface %s: %w", a.Name, err)
			}
			k.attached[a.Index] = at
		}
	}
	k.letGo(links)
	return k.describe(links)
}

// letGo forgets interfaces that are gone.
func (k *kernel) letGo(links []netlink.Link) {
	for index, at := range k.attached {
		if slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == index }) {
			continue
		}
		for _, l := range at.links() {
			_ = l.Unpin()
			_ = l.Close()
		}
		delete(k.attached, index)
	}
}

// describe writes what the XDP program has to know of the interfaces, if it runs anywhere.
func (k *kernel) describe(links []netlink.Link) error {
	runs := slices.ContainsFunc(slices.Collect(maps.Values(k.attached)), func(at *attached) bool { return at.xdp != nil })
	for _, l := range links {
		a := l.Attrs()
		at := k.attached[a.Index]
		if at == nil || a.Index >= maxInterfaces {
			continue
		}
		is := networkInterface{}
		if runs {
			is = describe(a, at)
		}
		if at.written != nil && is == *at.written {
			continue
		}
		if err := k.objects.Interfaces.Put(uint32(a.Index), is); err != nil {
			return fmt.Errorf("map interfaces: %w", err)
		}
		at.written = &is
	}
	return nil
}

func describe(a *netlink.LinkAttrs, at *attached) (is networkInterface) {
	copy(is.MAC[:], a.HardwareAddr)
	if at.xdp != nil {
		is.Runs = 1
	}
	// One that cannot be asked now, as when it goes, gets nothing by XDP: then tcx sees to it.
	if features, err := xdpFeatures(a.Index); err == nil && features&xdpTransmits != 0 && a.RawFlags&flagUp != 0 {
		is.Transmits = 1
	}
	return is
}

// flagUp is IFF_UP.
const flagUp = 1

func (k *kernel) attachTo(a *netlink.LinkAttrs) (*attached, error) {
	tcx, err := k.attachPinned("link", a.Index, k.objects.LbTc, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: a.Index, Program: k.objects.LbTc, Attach: ebpf.AttachTCXIngress})
	})
	if err != nil {
		return nil, err
	}
	at := &attached{name: a.Name, tcx: tcx}
	mode, required := k.modeFor(a)
	if mode == 0 {
		return at, k.unpin("xdp", a.Index)
	}
	at.xdp, err = k.attachPinned("xdp", a.Index, k.xdp.LbXdp, func() (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Interface: a.Index, Program: k.xdp.LbXdp, Flags: mode})
	})
	if err != nil && required {
		return nil, errors.Join(fmt.Errorf("XDP (backend option %s=%s): %w", optionXDP, k.xdpMode, err), tcx.Close())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "interface %s: no XDP, tcx does all: %v\n", a.Name, err)
	}
	return at, nil
}

// modeFor tells how the XDP program is to be attached to the interface, not at all if 0, and whether it must be.
func (k *kernel) modeFor(a *netlink.LinkAttrs) (mode link.XDPAttachFlags, required bool) {
	if a.Index >= maxInterfaces {
		return 0, false
	}
	switch k.xdpMode {
	case xdpNative:
		return link.XDPDriverMode, true
	case xdpGeneric:
		return link.XDPGenericMode, true
	case xdpAuto:
		// On others, as a veth pair, a frame would have to be copied for XDP, and large ones be cut up first.
		if _, err := os.Stat(filepath.Join("/sys/class/net", a.Name, "device")); err == nil {
			return link.XDPDriverMode, false
		}
	}
	return 0, false
}

// attachPinned has the program take the place of an earlier process's, or attaches it.
func (k *kernel) attachPinned(kind string, index int, program *ebpf.Program, attach func() (link.Link, error)) (link.Link, error) {
	pin := k.pin(kind, index)
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		if err = l.Update(program); err == nil {
			return l, nil
		}
		// Its interface is gone, and another one has its number.
		_ = l.Close()
		if err := os.Remove(pin); err != nil {
			return nil, err
		}
	}
	l, err := attach()
	if err != nil {
		return nil, err
	}
	return l, l.Pin(pin)
}

func (k *kernel) pin(kind string, index int) string {
	return filepath.Join(k.dir, fmt.Sprintf("%s-%d", kind, index))
}

// unpin detaches what an earlier process attached.
func (k *kernel) unpin(kind string, index int) error {
	l, err := link.LoadPinnedLink(k.pin(kind, index), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(l.Detach(), l.Unpin(), l.Close())
}
