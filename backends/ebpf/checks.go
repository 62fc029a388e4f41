package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// Preflight checks the kernel, the BPF file system, and the interfaces on which XDP is to run.
func (b *Backend) Preflight(_ context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	o, err := parseOptions(config.Options)
	if err != nil {
		return nil, err
	}
	host := preflight.Host{}
	checks := []dataplane.Check{
		host.Capability(preflight.NetAdmin, ""),
		host.Capability(preflight.BPF, "", preflight.SysAdmin),
		host.Capability(preflight.Perfmon, "", preflight.SysAdmin),
		syscallCheck(), bpffsCheck(host, o.bpffs),
	}
	checks = append(checks, kernelChecks(host)...)
	checks = append(checks, attachChecks(o.attach, host)...)
	checks = append(checks, xdpKernelChecks(o.xdp)...)
	checks = append(checks, trackingCheck())
	checks = append(checks, forwardingChecks(host)...)
	checks = append(checks, ownerChecks()...)
	interfaces, err := interfaceChecks(o, pinDirectory(o, config.StateDir))
	return append(checks, interfaces...), err
}

// forwardingChecks check which families are forwarded. A frontend needs only its own family. Without any of them no frontend works.
func forwardingChecks(host preflight.Host) []dataplane.Check {
	v4, v6 := host.ForwardingIPv4("IPv4 frontends"), host.ForwardingIPv6("IPv6 frontends")
	if !forwards(host, "net/ipv4/ip_forward") && !forwards(host, preflight.ForwardsIPv6("all")) {
		v4.Costs, v6.Costs = "", ""
	}
	return []dataplane.Check{v4, v6}
}

// forwards tells whether the sysctl is on or unknown. A kernel without the family does not have it.
func forwards(host preflight.Host, key string) bool {
	value, err := host.SysctlValue(key)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	return preflight.NotZero(value)
}

// kernelChecks are a check of the release, and one of each required feature.
func kernelChecks(host preflight.Host) []dataplane.Check {
	release := dataplane.Check{Group: dataplane.GroupKernel, Subject: "kernel", State: dataplane.CheckOK}
	if version, err := host.KernelRelease(); err != nil {
		release.State, release.Found = dataplane.CheckUnknown, err.Error()
	} else {
		release.Found = "Linux " + version
	}
	checks := []dataplane.Check{release}
	for _, r := range kernelRequirements() {
		checks = append(checks, r.check())
	}
	return checks
}

func (n requirement) check() dataplane.Check {
	c := dataplane.Check{Group: n.group, Subject: n.name, State: dataplane.CheckOK, Found: "it is there"}
	switch {
	case n.err == nil:
	case errors.Is(n.err, ebpf.ErrNotSupported):
		c.State, c.Found = dataplane.CheckMissing, "this kernel does not have it"
		c.Advice = fmt.Sprintf("boot Linux %s or later, or a distribution's kernel that has it, or use --backend=nftables or --backend=envoy", n.since)
		if n.group == dataplane.GroupBTF {
			c.Advice = "boot a kernel that is built with CONFIG_DEBUG_INFO_BTF, or use --backend=nftables or --backend=envoy"
		}
	case errors.Is(n.err, unix.EPERM):
		// The library's error advises to raise RLIMIT_MEMLOCK, which is not the reason.
		c.State, c.Found = dataplane.CheckUnknown, needsCapabilities
	default:
		c.State, c.Found = dataplane.CheckUnknown, n.err.Error()
	}
	return c
}

// needsCapabilities is the result of a check that the process is not allowed to make.
const needsCapabilities = "it cannot be tried without the capabilities BPF and NET_ADMIN"

// syscallCheck loads a program of two instructions.
func syscallCheck() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupKernel, Subject: "system call bpf", State: dataplane.CheckOK, Found: "it loads programs"}
	switch err := features.HaveProgramType(ebpf.SchedCLS); {
	case err == nil:
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOSYS):
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "this kernel is built without it", "boot a kernel that is built with CONFIG_BPF_SYSCALL, or use --backend=nftables or --backend=envoy"
	case errors.Is(err, unix.EPERM):
		c.State, c.Found = dataplane.CheckMissing, "it is refused"
		c.Advice = "give this process the capabilities BPF and NET_ADMIN and, in a container, a seccomp profile that allows bpf (seccompProfile: {type: Unconfined})"
	default:
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
	}
	return c
}

// bpffsCheck checks whether the BPF file system is mounted at the path, or can be.
func bpffsCheck(host preflight.Host, path string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupMounts, Subject: "BPF file system at " + path, State: dataplane.CheckOK, Found: "it is mounted"}
	var s unix.Statfs_t
	err := unix.Statfs(path, &s)
	if err == nil && s.Type == unix.BPF_FS_MAGIC {
		return c
	}
	if mounts, hasErr := host.Has(preflight.SysAdmin); err == nil && hasErr == nil && mounts && path == defaultBPFFS {
		c.Found = "it is mounted when the dataplane starts"
		return c
	}
	c.State, c.Found = dataplane.CheckMissing, "it is not mounted"
	c.Command = fmt.Sprintf("mkdir -p %s && mount -t bpf bpf %s && echo 'bpf %s bpf mode=0700 0 0' >> /etc/fstab", path, path, path)
	if errors.Is(err, os.ErrNotExist) && path == defaultBPFFS {
		c.Command, c.Advice = "", "boot a kernel that is built with CONFIG_BPF_SYSCALL; in a container, mount the host's "+path
	}
	return c
}

// pinDirectory returns the directory in which this gateway's objects are pinned.
func pinDirectory(o options, stateDir string) string {
	return filepath.Join(o.bpffs, pinName(stateDir))
}

// interfaceChecks check the interfaces on which XDP is to run.
func interfaceChecks(o options, dir string) (checks []dataplane.Check, err error) {
	links, err := listInterfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	k := &kernel{dir: dir, xdpMode: o.xdp}
	for _, l := range links {
		a := l.Attrs()
		if a.EncapType != "ether" {
			continue
		}
		if mode, required := k.modeFor(a); mode != 0 {
			checks = append(checks, k.xdpChecks(a, mode, required)...)
		}
	}
	return checks, nil
}

// xdpRuns is NETDEV_XDP_ACT_BASIC: the driver runs XDP programs.
const xdpRuns = 1

// xdpChecks check one interface on which XDP is to run.
func (k *kernel) xdpChecks(a *netlink.LinkAttrs, mode link.XDPAttachFlags, required bool) []dataplane.Check {
	costs := "XDP, the fast path, at interface " + a.Name
	if required {
		costs = ""
	}
	driver := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "XDP at interface " + a.Name, Costs: costs, State: dataplane.CheckOK, Found: "its driver runs XDP programs"}
	features, err := xdpFeatures(a.Index)
	switch {
	case mode == link.XDPGenericMode:
		driver.Found = "the kernel runs XDP programs in generic mode"
	case err != nil:
		driver.State, driver.Found = dataplane.CheckUnknown, err.Error()
	case features&xdpRuns == 0 && !required:
		driver.Found = "its driver runs no XDP programs: the tc program handles all packets"
		return []dataplane.Check{driver} // an XDP program of another owner does not matter
	case features&xdpRuns == 0:
		driver.State, driver.Found = dataplane.CheckMissing, "its driver runs no XDP programs"
		driver.Advice = fmt.Sprintf("use --backend-option %s=%s, or another network card", optionXDP, xdpAuto)
	}
	owner := dataplane.Check{Group: dataplane.GroupOwners, Subject: "XDP at interface " + a.Name, Costs: costs, State: dataplane.CheckOK, Found: "no other program runs there"}
	if a.Xdp != nil && a.Xdp.Attached && !k.runs(a.Index, a.Xdp.ProgId) {
		owner.State, owner.Found = dataplane.CheckMissing, fmt.Sprintf("XDP program %d of another owner runs there (bpftool prog show id %d)", a.Xdp.ProgId, a.Xdp.ProgId)
		owner.Advice = fmt.Sprintf("end its owner, and if the program stays run: ip link set dev %s xdp off", a.Name)
		if !required {
			owner.Advice = "leave it, and the tc program handles all packets; or " + owner.Advice
		}
	}
	return []dataplane.Check{driver, owner}
}

// runs tells whether the XDP program at an interface belongs to this gateway.
func (k *kernel) runs(index int, program uint32) bool {
	l, err := link.LoadPinnedLink(k.pin("xdp", index), nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	return err == nil && info.Program == ebpf.ProgramID(program)
}
