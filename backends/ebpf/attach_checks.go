package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	nft "github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// attachChecks check how the tc program can be attached: by tcx, or by clsact, for which the kernel needs modules.
func attachChecks(option string, host preflight.Host) []dataplane.Check {
	return attachChecksFor(checkTCX(), option, host)
}

// attachChecksFor returns the checks for a result of checkTCX and a value of the option attach.
func attachChecksFor(err error, option string, host preflight.Host) []dataplane.Check {
	modules := host.Modules()
	tcx := dataplane.Check{Group: dataplane.GroupKernel, Subject: "tcx", State: dataplane.CheckOK, Found: "it is there"}
	// If this process may not query tcx, the library reports that the kernel does not have it.
	may, unknown := host.Has(preflight.NetAdmin)
	switch {
	case option == attachClsact:
		return clsactChecks(modules)
	case err == nil:
	case unknown != nil || !may:
		tcx.State, tcx.Found = dataplane.CheckUnknown, needsCapabilities
	case option == attachTCX:
		tcx.State, tcx.Found = dataplane.CheckMissing, "this kernel does not have it"
		tcx.Advice = fmt.Sprintf("use --backend-option %s=%s, or boot Linux 6.6 or later", optionAttach, attachAuto)
	default:
		tcx.Found = "this kernel does not have it (Linux 6.6): filters of clsact take its place"
		return append([]dataplane.Check{tcx}, clsactChecks(modules)...)
	}
	return []dataplane.Check{tcx}
}

func clsactChecks(modules preflight.Modules) []dataplane.Check {
	qdisc, classifier := tryFilter()
	return []dataplane.Check{
		modules.Check("sch_ingress", "NET_SCH_INGRESS", qdisc, ""),
		modules.Check("cls_bpf", "NET_CLS_BPF", classifier, ""),
	}
}

// tryFilter adds a queueing discipline clsact and a filter, with a program that does nothing, at the loopback interface of a new network namespace.
func tryFilter() (qdisc, classifier preflight.Trial) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		return preflight.NotTried, preflight.NotTried // another check reports this
	}
	defer program.Close()
	preflight.InNetworkNamespace(func() {
		f := &filter{index: 1, name: "kubelb-preflight"}
		if qdisc = trialResult(netlink.QdiscAdd(f.qdisc())); qdisc == preflight.Works {
			classifier = trialResult(netlink.FilterAdd(f.netlinkFilter(program, firstPriority)))
		}
	})
	return qdisc, classifier
}

// trialResult converts the error of a request that uses a kernel module. Without the module the kernel does not know the kind.
func trialResult(err error) preflight.Trial {
	switch {
	case err == nil:
		return preflight.Works
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return preflight.Fails
	}
	return preflight.NotTried
}

// xdpKernelChecks check kernel features of XDP, which only makes the dataplane faster.
func xdpKernelChecks(xdp string) []dataplane.Check {
	if xdp == xdpOff {
		return nil
	}
	const loopback = 1 // in every network namespace
	var unknown error
	if _, err := xdpFeatures(loopback); errors.Is(err, errNoXDPFeatures) {
		unknown = err
	}
	return xdpKernelChecksFor(xdp, unknown, checkXDPFrags())
}

// xdpKernelChecksFor returns the checks for these errors: of reading the features of drivers, and of checkXDPFrags.
func xdpKernelChecksFor(xdp string, features, frags error) []dataplane.Check {
	driver := dataplane.Check{Group: dataplane.GroupKernel, Subject: "XDP features of drivers (Linux 6.3)", Costs: "XDP, the fast path", State: dataplane.CheckOK, Found: "it is there"}
	switch {
	case features != nil && xdp == xdpAuto:
		driver.State, driver.Found = dataplane.CheckMissing, fmt.Sprintf("this kernel does not have it: %s=%s uses XDP nowhere", optionXDP, xdpAuto)
		driver.Advice = fmt.Sprintf("boot Linux 6.3 or later, or use --backend-option %s=%s if each driver runs XDP programs, or %s=%s to do without", optionXDP, xdpNative, optionXDP, xdpOff)
		return []dataplane.Check{driver} // XDP runs nowhere, so the other check does not matter
	case features != nil:
		driver.Found = fmt.Sprintf("this kernel does not have it, and %s=%s does not need it", optionXDP, xdp)
	}
	frames := dataplane.Check{Group: dataplane.GroupKernel, Subject: "XDP frames in several pieces (Linux 5.18)", Costs: "XDP at interfaces whose driver needs them for its MTU", State: dataplane.CheckOK, Found: "it is there"}
	switch {
	case errors.Is(frags, unix.EPERM):
		frames.State, frames.Found = dataplane.CheckUnknown, needsCapabilities
	case frags != nil:
		frames.State, frames.Found, frames.Advice = dataplane.CheckMissing, "this kernel does not have it", "boot Linux 5.18 or later, or lower the MTU"
	}
	return []dataplane.Check{driver, frames}
}

// trackingCheck checks whether the programs can call connection tracking. They need that if this dataplane replaces the nftables dataplane: it keeps the TCP
// connections that the former one began.
func trackingCheck() dataplane.Check { return detectTracking(btf.NewCache(), "/").check() }

func (t tracking) check() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupKernel, Subject: "calls of connection tracking", State: dataplane.CheckOK, Found: "the programs can call it",
		Costs: "TCP connections that the nftables dataplane began: they end when this dataplane replaces it"}
	switch {
	case !t.present:
		c.Found = "this kernel does not track connections now, and no calls are needed"
		return c
	case t.err == nil:
		return c
	}
	c.Found = "the programs cannot call it: " + t.err.Error()
	former, err := hasNftablesTable()
	if err != nil || !former {
		c.Found += "; the nftables dataplane has no tables here, so that no connection ends"
		return c
	}
	c.State = dataplane.CheckMissing
	c.Advice = "boot Linux 5.19 or later, built with CONFIG_DEBUG_INFO_BTF_MODULES if connection tracking is a module of it"
	if isPermission(t.err) {
		c.Advice = "give this process the capability SYS_ADMIN for the change; the chart does so for the change from nftables"
	}
	return c
}

// isPermission tells whether this process may not read the types of a kernel module.
func isPermission(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// nftablesTable is the default name of the nftables dataplane's tables.
const nftablesTable = "kubelb"

func hasNftablesTable() (bool, error) {
	c, err := nft.New()
	if err != nil {
		return false, fmt.Errorf("connect to nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nft.Table) bool { return t.Name == nftablesTable }), nil
}
