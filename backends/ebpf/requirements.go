package ebpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// requirement is a feature of the kernel that the eBPF dataplane requires.
type requirement struct {
	group dataplane.Group
	name  string
	// since is the Linux release that has it first. Distributions may add it to older releases, so the kernel itself is tested.
	since string
	// err is nil if the kernel has the feature. It wraps ebpf.ErrNotSupported if not. It is another error if the test failed, for example without a capability.
	err error
}

// kernelRequirements tests all required features, by loading programs and maps that do nothing.
func kernelRequirements() []requirement {
	helper := func(kind ebpf.ProgramType, name string, f asm.BuiltinFunc, since string) requirement {
		return requirement{dataplane.GroupKernel, "BPF helper " + name, since, features.HaveProgramHelper(kind, f)}
	}
	return []requirement{
		helper(ebpf.SchedCLS, "bpf_skc_lookup_tcp", asm.FnSkcLookupTcp, "5.2"),
		{dataplane.GroupBTF, "types of the kernel (CONFIG_DEBUG_INFO_BTF)", "5.4", checkBTF()},
		{dataplane.GroupKernel, "BPF map batch operations", "5.6", checkBatches()},
		helper(ebpf.SchedCLS, "bpf_redirect_neigh", asm.FnRedirectNeigh, "5.10"),
		{dataplane.GroupKernel, "BPF inner maps of different sizes", "5.10", features.HaveMapFlag(features.BPF_F_INNER_MAP)},
		helper(ebpf.SchedCLS, "bpf_ktime_get_coarse_ns", asm.FnKtimeGetCoarseNs, "5.11"),
		{dataplane.GroupKernel, "BPF atomic operations that return a value", "5.12", checkFetch()},
		helper(ebpf.SchedCLS, "bpf_for_each_map_elem", asm.FnForEachMapElem, "5.13"),
		{dataplane.GroupKernel, "BPF programs of type syscall", "5.14", features.HaveProgramType(ebpf.Syscall)},
	}
}

// checkKernel returns an error that names the missing features, and what to do.
func checkKernel() error {
	release, err := preflight.Host{}.KernelRelease()
	if err != nil {
		return err
	}
	return missingError(release, kernelRequirements())
}

// missingError returns an error that names the missing features. A feature whose test failed does not count: if it is missing, loading the programs fails.
func missingError(release string, requirements []requirement) error {
	var missing []string
	for _, r := range requirements {
		if errors.Is(r.err, ebpf.ErrNotSupported) {
			missing = append(missing, fmt.Sprintf("%s (Linux %s)", r.name, r.since))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("the eBPF dataplane does not work with kernel %s, which lacks %s: boot a newer kernel, or use --backend=nftables or --backend=envoy: 'kubelb-manager preflight --backend=NAME' checks whether this kernel has what they need", release, strings.Join(missing, ", "))
}

func checkBTF() error {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return nil
}

func checkBatches() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	_, err = m.BatchUpdate([]uint32{0}, []uint32{0}, nil)
	return err
}

// checkFetch tests an atomic OR that returns the former value.
func checkFetch() error {
	return tryLoad(ebpf.SchedCLS, 0, asm.Instructions{
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
		asm.FetchOr.Mem(asm.RFP, asm.R1, asm.DWord, -8),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	})
}

// xdpHasFrags is BPF_F_XDP_HAS_FRAGS: the program supports frames in several buffers.
const xdpHasFrags = 1 << 5

// checkXDPFrags tests whether XDP programs may support frames in several buffers (Linux 5.18). Without that a driver runs no XDP program if the MTU is larger than a
// page.
func checkXDPFrags() error {
	return tryLoad(ebpf.XDP, xdpHasFrags, asm.Instructions{asm.Mov.Imm(asm.R0, xdpPassResult), asm.Return()})
}

// xdpPassResult is XDP_PASS.
const xdpPassResult = 2

// checkSleepableHashes tests whether a program that may sleep, such as the sweep, may use hash maps whose elements are not allocated in advance.
func checkSleepableHashes() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1, Flags: noPreallocation})
	if err != nil {
		return err
	}
	defer m.Close()
	return tryLoad(ebpf.Syscall, sleepable, asm.Instructions{asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Imm(asm.R0, 0), asm.Return()})
}

// sleepable is BPF_F_SLEEPABLE.
const sleepable = 1 << 4

// tryLoad loads a valid program. The kernel returns EINVAL if it does not know a feature that the program uses.
func tryLoad(kind ebpf.ProgramType, flags uint32, instructions asm.Instructions) error {
	program, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{Type: kind, Flags: flags, License: "MIT", Instructions: instructions}, ebpf.ProgramOptions{LogDisabled: true})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	return program.Close()
}
