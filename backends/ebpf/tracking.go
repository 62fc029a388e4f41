package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Connection tracking is part of the kernel, or the module nf_conntrack that is loaded when something needs it first. The programs ask it which TCP
// connections another dataplane of this host rewrites (bpf/host_state.h), by functions that are only there while it is.
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

// trackingSigns are files that are there while connection tracking is, as a module or as a part of the kernel; under the root of a file system,
// which tests have their own of.
func trackingSigns(root string) []string {
	return []string{filepath.Join(root, "sys/module", trackingModule), filepath.Join(root, "proc/sys/net/netfilter/nf_conntrack_max")}
}

// trackingIsThere tells whether the kernel tracks connections. It does not ask for types: a kernel may track without any (findTracking says so).
func trackingIsThere(root string) bool {
	return slices.ContainsFunc(trackingSigns(root), exists)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// findTracking looks where the functions are.
func findTracking(cache *btf.Cache, root string) tracking {
	kernel, err := cache.Kernel()
	if err != nil {
		return tracking{seen: true, why: err}
	}
	return trackingBeside(kernel, func() (*btf.Spec, error) { return cache.Module(trackingModule) }, root)
}

// trackingBeside is findTracking where the kernel has these types, and the module those, if it has any.
func trackingBeside(kernel *btf.Spec, module func() (*btf.Spec, error), root string) tracking {
	builtIn := hasTracking(kernel)
	if builtIn == nil {
		return tracking{seen: true}
	}
	if !trackingIsThere(root) {
		return tracking{}
	}
	if !exists(filepath.Join(root, "sys/kernel/btf", trackingModule)) {
		return tracking{seen: true, why: fmt.Errorf("%w; where it is in kernel module %s, that has no types (CONFIG_DEBUG_INFO_BTF_MODULES)", builtIn, trackingModule)}
	}
	return tracking{seen: true, why: inModule(module)}
}

// inModule is nil if the module has the functions, and shows them.
func inModule(module func() (*btf.Spec, error)) error {
	// The kernel hands out the module's types, which a call needs, to CAP_SYS_ADMIN only.
	handle, err := btf.FindHandle(func(i *btf.HandleInfo) bool { return i.IsModule() && i.Name == trackingModule })
	if err != nil {
		return fmt.Errorf("types of kernel module %s (needs CAP_SYS_ADMIN): %w", trackingModule, err)
	}
	defer handle.Close()
	types, err := module()
	if err != nil {
		return fmt.Errorf("types of kernel module %s: %w", trackingModule, err)
	}
	return hasTracking(types)
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
	var errs []error
	if !k.tracking.seen && trackingIsThere(k.root) {
		errs = append(errs, k.loadAnew())
	}
	return errors.Join(append(errs, k.replaceFormer())...)
}

// loadAnew loads the complete program as the kernel is now. Interfaces run the former one until it is replaced there.
func (k *kernel) loadAnew() error {
	former := k.objects
	if err := k.loadTc(); err != nil {
		return fmt.Errorf("connection tracking has come: %w", err)
	}
	for _, at := range k.attached {
		at.former = true
	}
	return errors.Join(former.Close(), k.tracking.fault())
}

// replaceFormer has the program run wherever one that was loaded before still does. Where that fails it is tried again at the next look.
func (k *kernel) replaceFormer() error {
	var errs []error
	for _, at := range k.attached {
		if !at.former {
			continue
		}
		if err := at.tc.Update(k.objects.LbTc); err != nil && !errors.Is(err, unix.ENOLINK) { // its interface has gone
			errs = append(errs, fmt.Errorf("replace the program at interface %s: %w", at.name, err))
			continue
		}
		at.former = false
	}
	return errors.Join(errs...)
}
