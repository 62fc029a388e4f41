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

// placeChecks tell where the complete program can run: at tcx, or as a filter of clsact, for which the kernel needs modules.
func placeChecks(asked string, host preflight.Host) []dataplane.Check {
	return placeChecksAfter(haveTCX(), asked, host)
}

// placeChecksAfter are the checks where the question for tcx had this error.
func placeChecksAfter(err error, asked string, host preflight.Host) []dataplane.Check {
	modules := host.Modules()
	tcx := dataplane.Check{Group: dataplane.GroupKernel, Subject: "tcx", State: dataplane.CheckOK, Found: "it is there"}
	// The library says of a kernel that does not answer this process that it has no tcx.
	may, unknown := host.Has(preflight.NetAdmin)
	switch {
	case asked == attachClsact:
		return clsactChecks(modules)
	case err == nil:
	case unknown != nil || !may:
		tcx.State, tcx.Found = dataplane.CheckUnknown, withoutCapabilities
	case asked == attachTCX:
		tcx.State, tcx.Found = dataplane.CheckMissing, "this kernel does not have it"
		tcx.Advice = fmt.Sprintf("use --backend-option %s=%s, or boot Linux 6.6 or later", optionAttach, attachAuto)
	default:
		tcx.Found = "this kernel does not have it (Linux 6.6): filters of clsact take its place"
		return append([]dataplane.Check{tcx}, clsactChecks(modules)...)
	}
	return []dataplane.Check{tcx}
}

func clsactChecks(modules preflight.Modules) []dataplane.Check {
	entrance, classifier := tryFilter()
	return []dataplane.Check{
		modules.Check("sch_ingress", "NET_SCH_INGRESS", entrance, ""),
		modules.Check("cls_bpf", "NET_CLS_BPF", classifier, ""),
	}
}

// tryFilter runs a program that does nothing as a filter of clsact at the loopback of a network namespace of its own.
func tryFilter() (entrance, classifier preflight.Trial) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		return preflight.NotTried, preflight.NotTried // another check says why
	}
	defer program.Close()
	preflight.InOwnNetwork(func() {
		f := &filter{index: 1, name: "kubelb-preflight"}
		if entrance = trialOf(netlink.QdiscAdd(f.entrance())); entrance == preflight.Works {
			classifier = trialOf(netlink.FilterAdd(f.running(program, firstPriority)))
		}
	})
	return entrance, classifier
}

// trialOf reads what became of a module that was to be used. Where it is not there the kernel finds no such kind.
func trialOf(err error) preflight.Trial {
	switch {
	case err == nil:
		return preflight.Works
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return preflight.Fails
	}
	return preflight.NotTried
}

// speedChecks tell what makes no difference but to speed.
func speedChecks(xdp string) []dataplane.Check {
	if xdp == xdpOff {
		return nil
	}
	const loopback = 1 // in every network namespace
	var unknown error
	if _, err := xdpFeatures(loopback); errors.Is(err, errNoXDPFeatures) {
		unknown = err
	}
	return speedChecksOf(xdp, unknown, haveXDPFrags())
}

// speedChecksOf are those of a kernel that does not tell the features of drivers, or takes no frames in pieces, for these reasons.
func speedChecksOf(xdp string, features, pieces error) []dataplane.Check {
	told := dataplane.Check{Group: dataplane.GroupKernel, Subject: "XDP features of drivers (Linux 6.3)", Costs: "XDP, the fast path", State: dataplane.CheckOK, Found: "it is there"}
	switch {
	case features != nil && xdp == xdpAuto:
		told.State, told.Found = dataplane.CheckMissing, fmt.Sprintf("this kernel does not have it: %s=%s uses XDP nowhere", optionXDP, xdpAuto)
		told.Advice = fmt.Sprintf("boot Linux 6.3 or later, or use --backend-option %s=%s if each driver runs XDP programs, or %s=%s to do without", optionXDP, xdpNative, optionXDP, xdpOff)
		return []dataplane.Check{told} // with pieces it would run nowhere, either
	case features != nil:
		told.Found = fmt.Sprintf("this kernel does not have it, and %s=%s does not need it", optionXDP, xdp)
	}
	taken := dataplane.Check{Group: dataplane.GroupKernel, Subject: "XDP frames in several pieces (Linux 5.18)", Costs: "XDP at interfaces whose driver needs them for its MTU", State: dataplane.CheckOK, Found: "it is there"}
	switch {
	case errors.Is(pieces, unix.EPERM):
		taken.State, taken.Found = dataplane.CheckUnknown, withoutCapabilities
	case pieces != nil:
		taken.State, taken.Found, taken.Advice = dataplane.CheckMissing, "this kernel does not have it", "boot Linux 5.18 or later, or lower the MTU"
	}
	return []dataplane.Check{told, taken}
}

// trackingCheck tells whether TCP connections that the nftables dataplane began go on, where this one is to take over from it.
func trackingCheck() dataplane.Check { return findTracking(btf.NewCache(), "/").check() }

func (t tracking) check() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupKernel, Subject: "questions to connection tracking", State: dataplane.CheckOK, Found: "the programs can ask",
		Costs: "TCP connections that the nftables dataplane began: they end when this one takes over"}
	switch {
	case !t.seen:
		c.Found = "this kernel does not track connections now, so that there is nothing to ask"
		return c
	case t.why == nil:
		return c
	}
	c.Found = "the programs cannot ask: " + t.why.Error()
	former, err := servedByNftables()
	if err != nil || !former {
		c.Found += "; the nftables dataplane holds nothing here, so that nothing is lost"
		return c
	}
	c.State = dataplane.CheckMissing
	c.Advice = "boot Linux 5.19 or later, built with CONFIG_DEBUG_INFO_BTF_MODULES if connection tracking is a module of it"
	if isPermission(t.why) {
		c.Advice = "give this process the capability SYS_ADMIN for the change; the chart does so while it changes the dataplane from nftables"
	}
	return c
}

// isPermission tells whether the types of a kernel module are kept from this process.
func isPermission(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// nftablesTable is the usual name of the nftables dataplane's tables.
const nftablesTable = "kubelb"

func servedByNftables() (bool, error) {
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
