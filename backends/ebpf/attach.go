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
	xdpAuto    = "auto"    // on hardware interfaces whose driver supports it
	xdpNative  = "native"  // on every interface; an interface without it is an error
	xdpGeneric = "generic" // on every interface, by the kernel instead of the driver: for tests, since it is slower than no XDP
	xdpOff     = "off"
)

var xdpModes = []string{xdpAuto, xdpNative, xdpGeneric, xdpOff}

// The values of the option attach.
const (
	attachAuto   = "auto"   // tcx if the kernel has it, otherwise clsact
	attachTCX    = "tcx"    // Linux 6.6
	attachClsact = "clsact" // a filter, as the command tc creates it
)

var attachModes = []string{attachAuto, attachTCX, attachClsact}

// hook attaches a program to an interface: a pinned link, or a filter.
type hook interface {
	// Update replaces the program. The error is ENOLINK if the interface is gone.
	Update(*ebpf.Program) error
	// Detach detaches the program before it returns.
	Detach() error
	// Unpin removes the hook's file from the BPF file system.
	Unpin() error
	Close() error
}

// attached has the programs of an interface.
type attached struct {
	name string
	// tc runs the tc program, and xdp the XDP program. xdp may be nil.
	tc, xdp hook
	// outdated: tc runs a program that was loaded before the present one.
	outdated bool
	// written is the interface's element of the map interfaces. It is nil if this process has not written one.
	written *networkInterface
}

// close closes the hooks. The programs go on.
func (at *attached) close() error {
	var errs []error
	for _, h := range at.hooks() {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

func (at *attached) hooks() []hook {
	if at.xdp == nil {
		return []hook{at.tc}
	}
	return []hook{at.tc, at.xdp}
}

// detach detaches the programs before it returns. If only the pin were removed, the kernel would detach them some time later, and not while another process has
// the link open.
func (at *attached) detach() error {
	var errs []error
	for _, h := range at.hooks() {
		errs = append(errs, h.Detach())
	}
	return errors.Join(errs...)
}

// writeInterfaces writes the map interfaces for the XDP program, if that runs anywhere.
func (k *kernel) writeInterfaces(links []netlink.Link) error {
	runs := slices.ContainsFunc(slices.Collect(maps.Values(k.attached)), func(at *attached) bool { return at.xdp != nil })
	for _, l := range links {
		a := l.Attrs()
		at := k.attached[a.Index]
		if at == nil || a.Index >= maxInterfaces {
			continue
		}
		record := networkInterface{}
		if runs {
			record = k.interfaceRecord(a, at)
		}
		if at.written != nil && record == *at.written {
			continue
		}
		if err := k.objects.Interfaces.Put(uint32(a.Index), record); err != nil {
			return fmt.Errorf("map interfaces: %w", err)
		}
		at.written = &record
	}
	return nil
}

func (k *kernel) interfaceRecord(a *netlink.LinkAttrs, at *attached) (out networkInterface) {
	copy(out.MAC[:], a.HardwareAddr)
	if at.xdp != nil {
		out.HasXDP = 1
	}
	if a.RawFlags&flagUp != 0 && k.acceptsFrames(a, at) {
		out.AcceptsFrames = 1
	}
	return out
}

// acceptsFrames tells whether the interface's driver sends frames that XDP programs of other interfaces redirect to it. If that is unknown, as for an interface
// that is being removed, it returns false, and the tc program sends these packets. Linux before 6.3 does not tell it: there an operator who sets xdp=native has to
// make sure that the drivers can.
func (k *kernel) acceptsFrames(a *netlink.LinkAttrs, at *attached) bool {
	features, err := xdpFeatures(a.Index)
	if errors.Is(err, errNoXDPFeatures) {
		return k.xdpMode == xdpNative && at.xdp != nil
	}
	return err == nil && features&xdpAcceptsFrames != 0
}

// flagUp is IFF_UP.
const flagUp = 1

func (k *kernel) attachTo(a *netlink.LinkAttrs) (*attached, error) {
	tc, err := k.attachTc(a.Index)
	if err != nil {
		return nil, err
	}
	at := &attached{name: a.Name, tc: tc}
	mode, required := k.modeFor(a)
	if mode == 0 {
		return at, k.unpin("xdp", a.Index)
	}
	xdp, err := k.attachPinned("xdp", a.Index, k.xdp.LbXdp, func() (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Interface: a.Index, Program: k.xdp.LbXdp, Flags: mode})
	})
	if err != nil && required {
		return nil, errors.Join(xdpRefusedError{fmt.Errorf("XDP (backend option %s=%s): %w", optionXDP, k.xdpMode, err)}, tc.Close())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "interface %s: XDP cannot be attached, so the tc program handles all packets: %v\n", a.Name, err)
		return at, nil
	}
	at.xdp = xdp
	return at, nil
}

// attachTc attaches the tc program. After that it detaches the program that an earlier process attached by the other method. For a moment both run: a packet that
// the first one handles does not reach the second one.
func (k *kernel) attachTc(index int) (hook, error) {
	f := k.filter(index)
	if k.options.attach == attachClsact {
		if err := f.attach(k.objects.LbTc); err != nil {
			return nil, err
		}
		return f, k.unpin("link", index)
	}
	l, err := k.attachPinned("link", index, k.objects.LbTc, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: index, Program: k.objects.LbTc, Attach: ebpf.AttachTCXIngress})
	})
	if err != nil {
		return nil, err
	}
	return l, f.Detach()
}

// checkTCX returns nil if the kernel has tcx.
func checkTCX() error {
	const loopback = 1 // in every network namespace
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err
}

// resolveAttach replaces auto by the method that this kernel supports.
func resolveAttach(option string) string {
	if option != attachAuto {
		return option
	}
	if checkTCX() != nil {
		return attachClsact
	}
	return attachTCX
}

// modeFor returns the mode in which the XDP program is attached to the interface, and whether a failure is an error. 0 means not at all.
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
		// Only hardware has a parent device (Linux 5.14). On others, such as a veth pair, the kernel would copy each frame for XDP, and split large ones before.
		// /sys/class/net does not help: it may show the interfaces of another network namespace.
		if a.ParentDev == "" {
			return 0, false
		}
		// Without these features no interface accepts frames, and XDP is of no use.
		if _, err := xdpFeatures(a.Index); !errors.Is(err, errNoXDPFeatures) {
			return link.XDPDriverMode, false
		}
	}
	return 0, false
}

// attachPinned replaces the program of an earlier process, or attaches the program if there is none.
func (k *kernel) attachPinned(kind string, index int, program *ebpf.Program, attach func() (link.Link, error)) (link.Link, error) {
	pin := k.pin(kind, index)
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		if err = l.Update(program); err == nil {
			return l, nil
		}
		// Its interface is gone, and this one has got the same index.
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

// unpin detaches the program that an earlier process attached.
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
