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

// The values of the option attach.
const (
	attachAuto   = "auto"   // tcx where the kernel has it
	attachTCX    = "tcx"    // Linux 6.6
	attachClsact = "clsact" // a filter, as tc makes them
)

var attachModes = []string{attachAuto, attachTCX, attachClsact}

// hook is a program's place at an interface: a pinned link, or a filter.
type hook interface {
	// Update puts another program in its place. The error is ENOLINK where the interface has gone.
	Update(*ebpf.Program) error
	// Detach ends the program before it returns.
	Detach() error
	// Unpin removes what the BPF file system has of it.
	Unpin() error
	Close() error
}

// attached is what runs at an interface.
type attached struct {
	name string
	// tc is where the complete program runs, xdp where the fast path does; nil if it does not.
	tc, xdp hook
	// former: tc runs a program that was loaded before the present one.
	former bool
	// written is what the XDP program knows of it; nil if that is not known yet.
	written *networkInterface
}

// close lets go of what this process holds of them. They go on.
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

// detach ends the programs before it returns. Without it the kernel would do so some time after the last reference to the link, that
// of the pin, is gone, and not while another process has it open.
func (at *attached) detach() error {
	var errs []error
	for _, h := range at.hooks() {
		errs = append(errs, h.Detach())
	}
	return errors.Join(errs...)
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
			is = k.describeOne(a, at)
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

func (k *kernel) describeOne(a *netlink.LinkAttrs, at *attached) (is networkInterface) {
	copy(is.MAC[:], a.HardwareAddr)
	if at.xdp != nil {
		is.Runs = 1
	}
	if a.RawFlags&flagUp != 0 && k.transmits(a, at) {
		is.Transmits = 1
	}
	return is
}

// transmits tells whether the interface's driver takes frames from XDP programs of others. One that cannot be asked now, as when it goes, gets
// nothing by XDP: then the complete program sees to it. Linux before 6.3 says it of none: there the operator who asks for native answers for the
// drivers that run the program.
func (k *kernel) transmits(a *netlink.LinkAttrs, at *attached) bool {
	features, err := xdpFeatures(a.Index)
	if errors.Is(err, errNoXDPFeatures) {
		return k.xdpMode == xdpNative && at.xdp != nil
	}
	return err == nil && features&xdpTransmits != 0
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
		fmt.Fprintf(os.Stderr, "interface %s: no XDP, tc does all: %v\n", a.Name, err)
		return at, nil
	}
	at.xdp = xdp
	return at, nil
}

// attachTc attaches the complete program, and only then takes away what an earlier process had attached in the other way: for a moment
// there are both, and what one takes the other does not see.
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

// haveTCX is nil where the kernel has tcx.
func haveTCX() error {
	const loopback = 1 // in every network namespace
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err
}

// chooseAttach says how the complete program is attached where the operator leaves that open.
func chooseAttach(asked string) string {
	if asked != attachAuto {
		return asked
	}
	if haveTCX() != nil {
		return attachClsact
	}
	return attachTCX
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
		// Hardware alone has a parent (Linux 5.14). On others, as a veth pair, a frame would have to be copied for XDP, and large ones be cut up first.
		// /sys/class/net may show another network namespace's interfaces.
		if a.ParentDev == "" {
			return 0, false
		}
		// Where it cannot send it is of no use.
		if _, err := xdpFeatures(a.Index); !errors.Is(err, errNoXDPFeatures) {
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
