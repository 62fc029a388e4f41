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

// need is a feature of the kernel without which the backend does not work.
type need struct {
	group dataplane.Group
	name  string
	// since is the Linux release that brought it. Distributions bring it to older releases: the kernel is asked, not its number.
	since string
	// err is nil where the kernel has it. It wraps ebpf.ErrNotSupported where the kernel has not, and is another error where that could not be
	// found out, as for want of a capability.
	err error
}

// kernelNeeds asks the kernel for each feature that the programs need, by loading programs and maps that do nothing.
func kernelNeeds() []need {
	helper := func(kind ebpf.ProgramType, name string, f asm.BuiltinFunc, since string) need {
		return need{dataplane.GroupKernel, "BPF helper " + name, since, features.HaveProgramHelper(kind, f)}
	}
	return []need{
		helper(ebpf.SchedCLS, "bpf_skc_lookup_tcp", asm.FnSkcLookupTcp, "5.2"),
		{dataplane.GroupBTF, "types of the kernel (CONFIG_DEBUG_INFO_BTF)", "5.4", haveTypes()},
		{dataplane.GroupKernel, "BPF map batch operations", "5.6", haveBatches()},
		helper(ebpf.SchedCLS, "bpf_redirect_neigh", asm.FnRedirectNeigh, "5.10"),
		{dataplane.GroupKernel, "BPF inner maps of different sizes", "5.10", features.HaveMapFlag(features.BPF_F_INNER_MAP)},
		helper(ebpf.SchedCLS, "bpf_ktime_get_coarse_ns", asm.FnKtimeGetCoarseNs, "5.11"),
		{dataplane.GroupKernel, "BPF atomic operations that return a value", "5.12", haveFetch()},
		helper(ebpf.SchedCLS, "bpf_for_each_map_elem", asm.FnForEachMapElem, "5.13"),
		{dataplane.GroupKernel, "BPF programs of type syscall", "5.14", features.HaveProgramType(ebpf.Syscall)},
	}
}

// requireKernel says what the kernel lacks and what to do instead.
func requireKernel() error {
	release, err := preflight.Host{}.KernelRelease()
	if err != nil {
		return err
	}
	return lacking(release, kernelNeeds())
}

// lacking names the needs that the kernel surely has not. What could not be found out is no reason to refuse: loading the programs says more.
func lacking(release string, needs []need) error {
	var missing []string
	for _, n := range needs {
		if errors.Is(n.err, ebpf.ErrNotSupported) {
			missing = append(missing, fmt.Sprintf("%s (Linux %s)", n.name, n.since))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("the eBPF backend does not work with this kernel, %s: it lacks %s: boot a newer kernel, or try --backend=nftables or --backend=envoy: 'kubelb-manager preflight --backend=NAME' says whether this kernel has what they need", release, strings.Join(missing, ", "))
}

func haveTypes() error {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return nil
}

func haveBatches() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	_, err = m.BatchUpdate([]uint32{0}, []uint32{0}, nil)
	return err
}

// haveFetch loads a program with an atomic OR that returns what was there before.
func haveFetch() error {
	return loads(ebpf.SchedCLS, 0, asm.Instructions{
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
		asm.FetchOr.Mem(asm.RFP, asm.R1, asm.DWord, -8),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	})
}

// xdpHasFrags is BPF_F_XDP_HAS_FRAGS: the program takes frames in several pieces.
const xdpHasFrags = 1 << 5

// haveXDPFrags tells whether an XDP program may take frames in several pieces (Linux 5.18). Without it drivers run none where the MTU is larger
// than a page.
func haveXDPFrags() error {
	return loads(ebpf.XDP, xdpHasFrags, asm.Instructions{asm.Mov.Imm(asm.R0, xdpPassResult), asm.Return()})
}

// xdpPassResult is XDP_PASS.
const xdpPassResult = 2

// haveSleepableHashes tells whether a program that may sleep, as the sweep is, may use hash maps whose elements are not allocated in advance.
func haveSleepableHashes() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1, Flags: noPreallocation})
	if err != nil {
		return err
	}
	defer m.Close()
	return loads(ebpf.Syscall, sleepable, asm.Instructions{asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Imm(asm.R0, 0), asm.Return()})
}

// sleepable is BPF_F_SLEEPABLE.
const sleepable = 1 << 4

// loads tells whether the kernel takes a program that is right where it knows what is in it.
func loads(kind ebpf.ProgramType, flags uint32, instructions asm.Instructions) error {
	program, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{Type: kind, Flags: flags, License: "MIT", Instructions: instructions}, ebpf.ProgramOptions{LogDisabled: true})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	return program.Close()
}
