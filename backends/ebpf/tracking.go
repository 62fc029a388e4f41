package ebpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Connection tracking is part of the kernel, or the module nf_conntrack that is loaded when something needs it first. The programs ask it which TCP
// connections another dataplane of this host rewrites (bpf/others.h), by functions that are only there while it is.
const trackingModule = "nf_conntrack"

// trackingFunctions are those that the programs call. Linux has them since 5.18 and 5.19.
var trackingFunctions = []string{"bpf_skb_ct_lookup", "bpf_ct_release"}

// tracking says whether the programs ask connection tracking.
type tracking struct {
	// seen: connection tracking was in the kernel when the programs were loaded.
	seen bool
	// why it is not asked although it was seen; nil if it is.
	why error
}

func (t tracking) asked() bool { return t.seen && t.why == nil }

// fault is what that costs; nil where nothing is lost.
func (t tracking) fault() error {
	if t.why == nil {
		return nil
	}
	return fmt.Errorf("the eBPF programs cannot ask connection tracking, so that TCP connections end which another dataplane of this host began: %w", t.why)
}

// findTracking looks where the functions are.
func findTracking(cache *btf.Cache) tracking {
	kernel, err := cache.Kernel()
	if err != nil {
		return tracking{seen: true, why: err}
	}
	if hasTracking(kernel) == nil {
		return tracking{seen: true}
	}
	if !trackingIsLoaded() {
		return tracking{}
	}
	// The kernel hands out the module's types, which a call needs, to CAP_SYS_ADMIN only.
	handle, err := btf.FindHandle(func(i *btf.HandleInfo) bool { return i.IsModule() && i.Name == trackingModule })
	if err != nil {
		return tracking{seen: true, why: fmt.Errorf("types of kernel module %s (needs CAP_SYS_ADMIN): %w", trackingModule, err)}
	}
	defer handle.Close()
	module, err := cache.Module(trackingModule)
	if err == nil {
		err = hasTracking(module)
	}
	return tracking{seen: true, why: err}
}

// trackingIsLoaded tells whether the module is there, with its types.
func trackingIsLoaded() bool {
	_, err := os.Stat("/sys/kernel/btf/" + trackingModule)
	return err == nil
}

func hasTracking(types *btf.Spec) error {
	for _, name := range trackingFunctions {
		var function *btf.Func
		if err := types.TypeByName(name, &function); err != nil {
			return fmt.Errorf("kernel function %s (Linux 5.19): %w", name, err)
		}
	}
	return nil
}

// followTracking loads the programs anew once connection tracking has come into the kernel, and has them take the place of the programs that do not
// ask it. Maps stay, and no packet is lost.
func (k *kernel) followTracking() error {
	if k.tracking.seen || !trackingIsLoaded() {
		return nil
	}
	former := k.objects
	if err := k.loadTc(); err != nil {
		return fmt.Errorf("connection tracking has come: %w", err)
	}
	var errs []error
	for _, at := range k.attached {
		if err := at.tc.Update(k.objects.LbTc); err != nil && !errors.Is(err, unix.ENOLINK) { // its interface has gone
			errs = append(errs, fmt.Errorf("replace the program at interface %s: %w", at.name, err))
		}
	}
	return errors.Join(append(errs, former.Close(), k.tracking.fault())...)
}
