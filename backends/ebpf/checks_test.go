package ebpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

func TestPreflightLimitsTheFamilyThatIsNotForwarded(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		assert.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
		assert.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0))
		checks, err := (&Backend{}).Preflight(t.Context(), dataplane.Config{StateDir: t.TempDir()})
		assert.NoError(t, err)
		states := map[string]dataplane.Check{}
		for _, c := range checks {
			states[c.Subject] = c
		}
		assert.Equal(t, dataplane.CheckOK, states["sysctl net.ipv4.ip_forward"].State)
		lacking := states["sysctl net.ipv6.conf.all.forwarding"]
		assert.Equal(t, dataplane.CheckMissing, lacking.State)
		assert.Equal(t, "IPv6 frontends", lacking.Costs)
	})
}

func TestForwardingOfOneFamilyIsRequired(t *testing.T) {
	const v4, v6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
	for name, c := range map[string]struct {
		sysctls map[string]string
		lacks   []string
		missing bool
	}{
		"both":                       {map[string]string{v4: "1", v6: "1"}, nil, false},
		"IPv4 alone":                 {map[string]string{v4: "1", v6: "0"}, []string{v6}, false},
		"IPv6 alone":                 {map[string]string{v4: "0", v6: "1"}, []string{v4}, false},
		"neither":                    {map[string]string{v4: "0", v6: "0"}, []string{v4, v6}, true},
		"IPv4, and there is no IPv6": {map[string]string{v4: "1"}, nil, false},
		"neither; there is no IPv6":  {map[string]string{v4: "0"}, []string{v4}, true},
	} {
		t.Run(name, func(t *testing.T) {
			host := preflight.Host{Root: t.TempDir()}
			for key, value := range c.sysctls {
				path := filepath.Join(host.Root, "proc/sys", key)
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
				require.NoError(t, os.WriteFile(path, []byte(value), 0o600))
			}
			checks := forwardingChecks(host)
			var lacks []string
			for _, check := range dataplane.Lacking(checks) {
				lacks = append(lacks, check.Subject)
			}
			var want []string
			for _, key := range c.lacks {
				want = append(want, "sysctl "+preflight.SysctlName(key))
			}
			require.Equal(t, want, lacks)
			require.Equal(t, c.missing, dataplane.MissingError(checks) != nil)
		})
	}
}

// Each network namespace has its own interface names, and /sys/class/net may show those of another namespace.
func TestAutoRunsNoXDPOnAVethWithTheNameOfAHardwareInterface(t *testing.T) {
	there, err := net.Interfaces()
	require.NoError(t, err)
	name := there[len(there)-1].Name
	preflighttest.InNetworkNamespace(t, func() {
		assert.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "other-end"}))
		checks, err := interfaceChecks(options{xdp: xdpAuto}, t.TempDir())
		assert.NoError(t, err)
		assert.Empty(t, checks)
	})
}

func TestAForeignXDPProgramMattersOnlyWhereThisOneWouldRun(t *testing.T) {
	const loopback = 1
	if features, err := xdpFeatures(loopback); err != nil || features&xdpRuns != 0 {
		t.Skip("the kernel does not say that the loopback runs no XDP programs")
	}
	a := &netlink.LinkAttrs{Index: loopback, Name: "lo", Xdp: &netlink.LinkXdp{Attached: true, ProgId: 7}}
	k := &kernel{dir: t.TempDir(), xdpMode: xdpAuto}
	require.Empty(t, dataplane.Lacking(k.xdpChecks(a, link.XDPDriverMode, false)))
	require.NotEmpty(t, dataplane.Lacking(k.xdpChecks(a, link.XDPGenericMode, true)))
}

func TestAMissingCapabilityIsNotReportedAsAMemoryLimit(t *testing.T) {
	check := requirement{dataplane.GroupKernel, "BPF helper", "5.2", fmt.Errorf("%w (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", unix.EPERM)}.check()
	require.Equal(t, dataplane.CheckUnknown, check.State)
	require.Equal(t, "it cannot be tried without the capabilities BPF and NET_ADMIN", check.Found)
	pieces := xdpKernelChecksFor(xdpNative, nil, unix.EPERM)[1]
	require.Equal(t, dataplane.CheckUnknown, pieces.State, "not reported as missing")
}

func TestPreflightReportsAKernelWithoutXDPFeaturesAsLimited(t *testing.T) {
	lacks := errors.New("this kernel does not have it")
	limited := func(checks []dataplane.Check) (lines []string) {
		for _, c := range dataplane.Lacking(checks) {
			require.False(t, c.Required(), "the tc program handles all packets")
			lines = append(lines, c.Subject+": "+c.Outcome())
		}
		return lines
	}
	require.Empty(t, limited(xdpKernelChecksFor(xdpAuto, nil, nil)))
	require.Equal(t, []string{"XDP features of drivers (Linux 6.3): this kernel does not have it: xdp=auto uses XDP nowhere; does not work: XDP, the fast path"}, limited(xdpKernelChecksFor(xdpAuto, lacks, lacks)))
	require.Empty(t, limited(xdpKernelChecksFor(xdpNative, lacks, nil)), "native XDP does not need it")
	require.Equal(t, []string{"XDP frames in several pieces (Linux 5.18): this kernel does not have it; does not work: XDP at interfaces whose driver needs them for its MTU"}, limited(xdpKernelChecksFor(xdpNative, lacks, lacks)))
	require.Empty(t, xdpKernelChecks(xdpOff))
}

func TestTCXIsUnknownWithoutCapabilities(t *testing.T) {
	host := preflight.Host{Root: t.TempDir()} // without /proc/self/status
	require.Equal(t, dataplane.CheckUnknown, attachChecksFor(ebpf.ErrNotSupported, attachAuto, host)[0].State)
	require.Equal(t, dataplane.CheckOK, attachChecksFor(nil, attachAuto, host)[0].State)
}
