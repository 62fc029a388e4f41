package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/core/model"
)

// trackingModule is the kernel module of connection tracking, which may also be built into the kernel. The module is loaded when a program first needs it. The BPF
// programs call its functions to find TCP connections that another dataplane of this host rewrites (bpf/host_state.h).
const trackingModule = "nf_conntrack"

// trackingFunctions are the kernel functions that the programs call. Linux has them since 5.18 and 5.19.
var trackingFunctions = []string{"bpf_skb_ct_lookup", "bpf_ct_release"}

// tracking tells whether the programs call connection tracking.
type tracking struct {
	// present: connection tracking was in the kernel when the programs were loaded.
	present bool
	// err is why the programs do not call it although it is present. It is nil if they do.
	err error
}

func (t tracking) usable() bool { return t.present && t.err == nil }

// fault returns what is wrong, or nil if connections of another dataplane go on. If there are none nothing is lost (see trackingFault).
func (t tracking) fault() error {
	if t.err == nil {
		return nil
	}
	return fmt.Errorf("the eBPF programs cannot call connection tracking, so TCP connections that another dataplane of this host began will end: %w", t.err)
}

// trackingFiles are files that exist while connection tracking is present, as a module or built in. root is the root of the file system.
func trackingFiles(root string) []string {
	return []string{filepath.Join(root, "sys/module", trackingModule), filepath.Join(root, "proc/sys/net/netfilter/nf_conntrack_max")}
}

// isTracking tells whether connection tracking is present. It does not look for types, since a kernel may lack them (detectTracking reports that).
func isTracking(root string) bool {
	return slices.ContainsFunc(trackingFiles(root), exists)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// detectTracking finds out whether the programs can call connection tracking.
func detectTracking(cache *btf.Cache, root string) tracking {
	kernel, err := cache.Kernel()
	if err != nil {
		return tracking{present: true, err: err}
	}
	return detectTrackingIn(kernel, func() (*btf.Spec, error) { return cache.Module(trackingModule) }, root)
}

// detectTrackingIn is detectTracking for the given types of the kernel and of the module.
func detectTrackingIn(kernel *btf.Spec, module func() (*btf.Spec, error), root string) tracking {
	builtIn := checkFunctions(kernel)
	if builtIn == nil {
		return tracking{present: true}
	}
	if !isTracking(root) {
		return tracking{}
	}
	if !exists(filepath.Join(root, "sys/kernel/btf", trackingModule)) {
		return tracking{present: true, err: fmt.Errorf("%w; kernel module %s has no types (CONFIG_DEBUG_INFO_BTF_MODULES)", builtIn, trackingModule)}
	}
	return tracking{present: true, err: checkModule(module)}
}

// checkModule returns nil if the module has the functions, and this process may read its types.
func checkModule(module func() (*btf.Spec, error)) error {
	// A call needs the module's types, which the kernel gives only to a process with CAP_SYS_ADMIN.
	handle, err := btf.FindHandle(func(i *btf.HandleInfo) bool { return i.IsModule() && i.Name == trackingModule })
	if err != nil {
		return fmt.Errorf("types of kernel module %s (needs CAP_SYS_ADMIN): %w", trackingModule, err)
	}
	defer handle.Close()
	types, err := module()
	if err != nil {
		return fmt.Errorf("types of kernel module %s: %w", trackingModule, err)
	}
	return checkFunctions(types)
}

func checkFunctions(types *btf.Spec) error {
	for _, name := range trackingFunctions {
		var function *btf.Func
		if err := types.TypeByName(name, &function); err != nil {
			return fmt.Errorf("kernel function %s (Linux 5.19): %w", name, err)
		}
	}
	return nil
}

// trackingFault returns the fault to report, or nil if no connection ends because of it. The caller holds mu.
func (b *Backend) trackingFault() error {
	fault := b.kernel.tracking.fault()
	if fault == nil {
		return nil
	}
	others, err := b.othersHaveConnections()
	if err == nil && !others {
		return nil
	}
	return errors.Join(fault, err)
}

// othersHaveConnections tells whether another dataplane of this host may have TCP connections of clients: the nftables dataplane, while it has tables, and any
// dataplane whose connections to a frontend are still tracked. The connections of the host's other programs never reach the programs' frontends.
func (b *Backend) othersHaveConnections() (bool, error) {
	if table, err := hasNftablesTable(); err != nil || table {
		return table, err
	}
	found := false
	for _, v4 := range []bool{true, false} {
		err := hostflows.EachTracked(v4, func(f *hostflows.Flow) bool {
			found = found || f.Protocol == model.TCP && f.IsRewritten() && b.state.frontends[f.Frontend()] != nil
			return false
		})
		if err != nil {
			return false, err
		}
	}
	return found, nil
}

// updateTracking loads the tc program again once connection tracking is present, and replaces the running program, which does not call it. Maps stay, and no packet
// is lost.
func (k *kernel) updateTracking() error {
	var errs []error
	if !k.tracking.present && isTracking(k.root) {
		errs = append(errs, k.reload())
	}
	return errors.Join(append(errs, k.replaceOutdated())...)
}

// reload loads the tc program again. Interfaces run the former one until replaceOutdated.
func (k *kernel) reload() error {
	former := k.objects
	if err := k.loadTc(); err != nil {
		return fmt.Errorf("load the programs again after the start of connection tracking: %w", err)
	}
	for _, at := range k.attached {
		at.outdated = true
	}
	return former.Close()
}

// replaceOutdated replaces programs that were loaded before the present one. The next poll tries again where that fails.
func (k *kernel) replaceOutdated() error {
	var errs []error
	for _, at := range k.attached {
		if !at.outdated {
			continue
		}
		if err := at.tc.Update(k.objects.LbTc); err != nil && !errors.Is(err, unix.ENOLINK) { // ENOLINK: the interface is gone
			errs = append(errs, fmt.Errorf("replace the program at interface %s: %w", at.name, err))
			continue
		}
		at.outdated = false
	}
	return errors.Join(errs...)
}
