package preflight

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/netlab"
)

// host is one on which the command runs.
type host struct {
	*netlab.Namespace
	t   *testing.T
	lab *netlab.Lab
}

// newHost makes a host with an interface eth0 that is up.
func newHost(t *testing.T, sysctls ...string) *host {
	t.Helper()
	if os.Getenv("KUBELB_BIN") == "" {
		t.Skip("needs the products and root: run it with make e2e")
	}
	lab := netlab.New("preflight")
	t.Cleanup(func() { require.NoError(t, lab.Close()) })
	ns, err := lab.Namespace("gateway", append([]string{"net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"}, sysctls...)...)
	require.NoError(t, err)
	other, err := lab.Namespace("other")
	require.NoError(t, err)
	require.NoError(t, lab.Link(netlab.Interface{Namespace: ns, Name: "eth0"}, netlab.Interface{Namespace: other, Name: "peer"}))
	return &host{Namespace: ns, t: t, lab: lab}
}

// forwards are the sysctls of a host that is ready.
var forwards = []string{"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"}

// run runs a program on the host, and returns its output and its exit status.
func (h *host) run(argv ...string) (output string, status int) {
	h.t.Helper()
	require.NoError(h.t, h.Do(func() error {
		out, err := exec.CommandContext(h.t.Context(), argv[0], argv[1:]...).CombinedOutput()
		output = string(out)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = exit.ExitCode()
			return nil
		}
		return err
	}))
	return output, status
}

func manager() string { return filepath.Join(os.Getenv("KUBELB_BIN"), "kubelb-manager") }

// preflight runs the command with the flags that most tests share, and with these flags.
func (h *host) preflight(flags ...string) (report string, status int) {
	h.t.Helper()
	return h.run(append([]string{manager(), "preflight", "--announce-interfaces=eth0", "--metrics-addr=127.0.0.1:9443", "--health-probe-bind-address=127.0.0.1:8081"}, flags...)...)
}

// line is the line about a subject, and the fix below it.
func line(t *testing.T, report, subject string) (verdict, fix string) {
	t.Helper()
	found := regexp.MustCompile(`(?m)^((\w+) +\w+ +` + regexp.QuoteMeta(subject) + ` .*)\n( {9}(.*))?`).FindStringSubmatch(report)
	require.NotNil(t, found, "no line about %s:\n%s", subject, report)
	return found[2], found[4]
}

// mend runs the command that a fix names. What it makes permanent is gone with the command.
func (h *host) mend(fix string) {
	h.t.Helper()
	command, is := strings.CutPrefix(fix, "run: ")
	require.True(h.t, is, "%q is no command", fix)
	out, status := h.run("unshare", "--mount", "sh", "-ec", "mount -t tmpfs tmpfs /etc/sysctl.d; "+command)
	require.Zero(h.t, status, "%s: %s", command, out)
}

// becomesReady returns the report when nothing is missing any more. The kernel notices a carrier a moment after it is there.
func (h *host) becomesReady(flags ...string) (report string) {
	h.t.Helper()
	for range 50 {
		var status int
		if report, status = h.preflight(flags...); status == 0 {
			return report
		}
		time.Sleep(200 * time.Millisecond)
	}
	require.Fail(h.t, "something is missing still", report)
	return ""
}

// backends are the dataplanes that are asked: all, or the one in KUBELB_BACKEND.
func backends() []string {
	if one := os.Getenv("KUBELB_BACKEND"); one != "" {
		return []string{one}
	}
	return []string{"nftables", "ebpf", "envoy"}
}

func TestAHostThatIsReadyIsSo(t *testing.T) {
	h := newHost(t, forwards...)
	for _, backend := range backends() {
		report, status := h.preflight("--backend=" + backend)
		require.Zero(t, status, report)
		require.NotContains(t, report, "MISSING ", report)
		require.Contains(t, report, "0 MISSING", report)
	}
}

// lacking are the lines about what the kernel lacks and no command can load.
var lacking = regexp.MustCompile(`(?m)^MISSING +(Kernel|BTF) .*`)

// refusals are, by dataplane, the first line that says what the kernel lacks. On such a kernel a test that waits for a host to become ready waits in vain:
// minutes for each of its subtests, under emulation.
func refusals(backends []string, report func(backend string) string) map[string]string {
	refused := map[string]string{}
	for _, backend := range backends {
		if found := lacking.FindString(report(backend)); found != "" {
			refused[backend] = found
		}
	}
	return refused
}

// runnable are the dataplanes that the kernel has all for. Without any the test is skipped: TestAHostThatIsReadyIsSo fails for each of the others.
func runnable(t *testing.T) []string {
	t.Helper()
	h := newHost(t, forwards...)
	refused := refusals(backends(), func(backend string) string {
		report, _ := h.preflight("--backend=" + backend)
		return report
	})
	left := slices.DeleteFunc(backends(), func(backend string) bool { return refused[backend] != "" })
	if len(left) == 0 {
		t.Skipf("this kernel is refused: %v", refused)
	}
	return left
}

// in is the host in a subtest.
func (h *host) in(t *testing.T) *host {
	t.Helper()
	return &host{h.Namespace, t, h.lab}
}

func TestWhatIsMissingIsThereAfterItsCommand(t *testing.T) {
	no := func(key string) func(*host) { return func(h *host) { h.run("sysctl", "-w", key+"=0") } }
	able := runnable(t)
	for name, c := range map[string]struct {
		breaks           func(*host)
		subject, verdict string
		// of are the dataplanes that need it. If none is named, the gateway does, with any of them.
		of []string
	}{
		"IPv4 is not forwarded": {no("net.ipv4.ip_forward"), "sysctl net.ipv4.ip_forward", "MISSING", []string{"nftables"}},
		"IPv6 is not forwarded": {no("net.ipv6.conf.all.forwarding"), "sysctl net.ipv6.conf.all.forwarding", "MISSING", []string{"nftables"}},
		// Each frontend needs that of its own family. Connections to Envoy and those that it makes are the host's own.
		"IPv4 alone is not forwarded":                          {no("net.ipv4.ip_forward"), "sysctl net.ipv4.ip_forward", "LIMITED", []string{"ebpf"}},
		"IPv6 alone is not forwarded":                          {no("net.ipv6.conf.all.forwarding"), "sysctl net.ipv6.conf.all.forwarding", "LIMITED", []string{"ebpf"}},
		"conntrack is strict":                                  {no("net.netfilter.nf_conntrack_tcp_loose"), "sysctl net.netfilter.nf_conntrack_tcp_loose", "LIMITED", []string{"nftables"}},
		"the way back of packets is filtered at the interface": {func(h *host) { h.run("sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=1") }, "sysctl net.ipv4.conf.eth0.rp_filter", "LIMITED", nil},
		"the way back of packets is filtered everywhere":       {func(h *host) { h.run("sysctl", "-w", "net.ipv4.conf.all.rp_filter=1") }, "sysctl net.ipv4.conf.eth0.rp_filter", "LIMITED", nil},
		"the interface is down":                                {func(h *host) { require.NoError(h.t, h.SetLink("eth0", false)) }, "interface eth0", "MISSING", nil},
	} {
		for _, backend := range able {
			if c.of != nil && !slices.Contains(c.of, backend) {
				continue
			}
			t.Run(backend+"/"+name, func(t *testing.T) {
				h := newHost(t, forwards...)
				c.breaks(h)
				report, status := h.preflight("--backend=" + backend)
				verdict, fix := line(t, report, c.subject)
				require.Equal(t, c.verdict, verdict, report)
				require.Equal(t, map[string]int{"MISSING": 1, "LIMITED": 0}[c.verdict], status)
				h.mend(fix)
				report = h.becomesReady("--backend=" + backend)
				verdict, fix = line(t, report, c.subject)
				require.Equal(t, "ok", verdict)
				require.Empty(t, fix)
			})
		}
	}
}

// kernelModules are those of the machine.
type kernelModules struct {
	// autoload is the file that names the program by which the kernel loads modules.
	autoload     string
	remove, load func(module string) error
}

func machineModules() kernelModules {
	return kernelModules{"/proc/sys/kernel/modprobe",
		func(module string) error { return unix.DeleteModule(module, unix.O_NONBLOCK) },
		func(module string) error {
			if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
				return fmt.Errorf("module %s stays away: %w\n%s", module, err, out)
			}
			return nil
		}}
}

// takeAway removes a module, and keeps the kernel from loading it by itself, until the test ends, however it ends. It tells whether that could be done: not
// where the module is built in, or another one needs it.
func (m kernelModules) takeAway(t *testing.T, module string) bool {
	t.Helper()
	modprobe, err := os.ReadFile(m.autoload)
	require.NoError(t, err)
	if m.remove(module) != nil {
		return false
	}
	t.Cleanup(func() {
		require.NoError(t, os.WriteFile(m.autoload, modprobe, 0))
		require.NoError(t, m.load(module))
	})
	require.NoError(t, os.WriteFile(m.autoload, []byte("/nowhere"), 0))
	return true
}

// needsNoModule tells whether the dataplane may have none that can be taken away: eBPF has what it needs built in where there is tcx.
func needsNoModule(backend, report string) bool {
	return backend == "ebpf" && regexp.MustCompile(`(?m)^ok +\w+ +tcx +it is there`).MatchString(report)
}

// Each module that the dataplane is said to use is taken away in turn.
func TestAModuleThatIsNotLoadedIsThereAfterItsCommand(t *testing.T) {
	if os.Getenv("KUBELB_UNLOAD_MODULES") == "" {
		t.Skip("unloads modules: make kernels CASE=preflight runs it in a kernel that is emulated")
	}
	h := newHost(t, forwards...)
	for _, backend := range runnable(t) {
		report, _ := h.preflight("--backend=" + backend)
		tried := 0
		for _, found := range regexp.MustCompile(`(?m)^ok +Modules +module (\w+) `).FindAllStringSubmatch(report, -1) {
			module := found[1]
			t.Run(backend+"/"+module, func(t *testing.T) {
				if !machineModules().takeAway(t, module) {
					return
				}
				tried++
				h := h.in(t)
				report, _ := h.preflight("--backend=" + backend)
				verdict, fix := line(t, report, "module "+module)
				require.Contains(t, []string{"MISSING", "LIMITED"}, verdict, report)
				t.Logf("%s without %s: %s; %s", backend, module, verdict, fix)
				h.mend(fix)
				report = h.becomesReady("--backend=" + backend)
				verdict, _ = line(t, report, "module "+module)
				require.Equal(t, "ok", verdict, report)
			})
		}
		t.Logf("%s: %d modules were taken away", backend, tried)
		require.True(t, tried > 0 || needsNoModule(backend, report), "%s: no module could be taken away, so nothing was shown:\n%s", backend, report)
	}
}

func TestAllThatIsMissingIsSaidAtOnce(t *testing.T) {
	h := newHost(t)
	require.NoError(t, h.SetLink("eth0", false))
	report, status := h.preflight()
	require.Equal(t, 1, status)
	require.Contains(t, report, "3 MISSING")
}

// eBPF serves a family that is forwarded without the other one. Envoy's connections are the host's own, so it forwards nothing.
func TestAHostThatForwardsNeitherFamilyLacksWhatItsDataplaneNeeds(t *testing.T) {
	for _, backend := range backends() {
		h := newHost(t)
		report, status := h.preflight("--backend=" + backend)
		if backend == "envoy" {
			require.NotContains(t, report, "sysctl net.ipv4.ip_forward")
			continue
		}
		require.Equal(t, 1, status, report)
		for _, subject := range []string{"sysctl net.ipv4.ip_forward", "sysctl net.ipv6.conf.all.forwarding"} {
			verdict, _ := line(t, report, subject)
			require.Equal(t, "MISSING", verdict, report)
		}
	}
}

func TestTheGatewayIsPreparedAndThenChecked(t *testing.T) {
	h := newHost(t)
	report, status := h.preflight("--prepare-host")
	require.Zero(t, status, report)
	report, status = h.preflight()
	require.Zero(t, status, report)
}

func TestAReportAloneKeepsNothingFromStarting(t *testing.T) {
	report, status := newHost(t).preflight("--report-only")
	require.Contains(t, report, "MISSING  Sysctls")
	require.Zero(t, status)
}

func TestAnInterfaceThatIsNotThereIsToldWhichThereAre(t *testing.T) {
	report, status := newHost(t, forwards...).preflight("--announce-interfaces=eth7")
	require.Equal(t, 1, status)
	verdict, fix := line(t, report, "interface eth7")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "name the interfaces of the clients' segment by --announce-interfaces; this host has eth0", fix)
	report, status = newHost(t, forwards...).preflight("--announce-interfaces=")
	require.Equal(t, 1, status)
	verdict, _ = line(t, report, "interfaces")
	require.Equal(t, "MISSING", verdict)
}

func TestAnInterfaceWithoutACarrierAnnouncesNothing(t *testing.T) {
	h := newHost(t, forwards...)
	_, status := h.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "end")
	require.Zero(t, status)
	require.NoError(t, h.SetLink("eth1", true))
	report, status := h.preflight("--announce-interfaces=eth1")
	require.Equal(t, 1, status)
	verdict, fix := line(t, report, "interface eth1")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "connect its cable, or bring up what it is connected to", fix)
	require.NoError(t, h.SetLink("end", true))
	h.becomesReady("--announce-interfaces=eth1")
}

// The gateway would be no candidate for addresses of the family.
func TestAnInterfaceThatDoesNotCarryAFamilyLimitsTheFamily(t *testing.T) {
	h := newHost(t, forwards...)
	report, status := h.preflight("--announce-interfaces=eth0, ")
	require.Zero(t, status, report)
	verdict, fix := line(t, report, "IPv4 at interface eth0")
	require.Equal(t, "LIMITED", verdict)
	require.Equal(t, "add an address of the clients' network (ip address add …/24 dev eth0)", fix)
	_, status = h.run("ip", "address", "add", "203.0.113.2/24", "dev", "eth0")
	require.Zero(t, status)
	_, status = h.run("sysctl", "-w", "net.ipv6.conf.eth0.disable_ipv6=1")
	require.Zero(t, status)
	report, _ = h.preflight()
	verdict, _ = line(t, report, "IPv4 at interface eth0")
	require.Equal(t, "ok", verdict)
	verdict, fix = line(t, report, "IPv6 at interface eth0")
	require.Equal(t, "LIMITED", verdict)
	h.mend(fix)
	report, _ = h.preflight()
	require.NotContains(t, report, "IPv6 is turned off")
	report, _ = h.preflight("--announce=bgp")
	require.NotContains(t, report, "IPv4 at interface", "addresses are announced to routers")
}

func TestTheLoopbackAnswersNoARP(t *testing.T) {
	report, _ := newHost(t, forwards...).preflight("--announce-interfaces=lo")
	verdict, fix := line(t, report, "interface lo")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "name an Ethernet interface by --announce-interfaces, or use --announce=bgp", fix)
}

func TestAPortInUseIsFreeOnceItsProgramHasEnded(t *testing.T) {
	h := newHost(t, forwards...)
	var listener net.Listener
	require.NoError(t, h.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:9443")
		return err
	}))
	report, status := h.preflight()
	require.Equal(t, 1, status)
	verdict, fix := line(t, report, "port tcp 127.0.0.1:9443 for metrics")
	require.Equal(t, "MISSING", verdict)
	require.Contains(t, report, fmt.Sprintf("(process %d)", os.Getpid()))
	require.Equal(t, "end that program, or choose another one by --metrics-addr", fix)
	report, status = h.preflight("--metrics-addr=127.0.0.1:9444")
	require.Zero(t, status, report)
	require.NoError(t, listener.Close())
	report, status = h.preflight()
	require.Zero(t, status, report)
}

func TestAForeignTableOfTheSameNameIsNamedAndNotTouched(t *testing.T) {
	h := newHost(t, forwards...)
	_, status := h.run("nft", "add table ip kubelb; add chain ip kubelb theirs")
	require.Zero(t, status)
	report, status := h.preflight()
	require.Equal(t, 1, status)
	verdict, fix := line(t, report, "nftables table ip kubelb")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "run: nft delete table ip kubelb     # or use another name for KubeLB's tables with --backend-option table=NAME", fix)
	rules, _ := h.run("nft", "list", "ruleset")
	require.Contains(t, rules, "chain theirs")
	require.NotContains(t, rules, "preflight", "what was tried is not there")
	report, status = h.preflight("--backend-option=table=other")
	require.Zero(t, status, report)
}

// What a start removes is named before: the tables of other dataplanes, the gateway's filter, and the interfaces by which it tries its ports.
func TestWhatAStartTakesFromAnotherProgramIsNamedBefore(t *testing.T) {
	h := newHost(t, forwards...)
	tables := map[string][]string{"ebpf": {"ip kubelb-ebpf", "ip6 kubelb-ebpf-end", "inet kubelb-transit"}, "envoy": {"ip kubelb-envoy", "netdev kubelb-envoy", "inet kubelb-transit"}, "nftables": {"inet kubelb-transit"}}
	for _, table := range []string{"ip kubelb-ebpf", "ip6 kubelb-ebpf-end", "inet kubelb-transit", "ip kubelb-envoy", "netdev kubelb-envoy"} {
		out, status := h.run("nft", "add table "+table+"; add chain "+table+" theirs")
		require.Zero(t, status, out)
	}
	out, status := h.run("ip", "link", "add", "kubelb-watch", "type", "veth", "peer", "name", "theirs")
	require.Zero(t, status, out)
	for _, backend := range backends() {
		report, status := h.preflight("--backend=" + backend)
		require.Zero(t, status, report)
		for _, table := range tables[backend] {
			verdict, fix := line(t, report, "nftables table "+table)
			require.Equal(t, "LIMITED", verdict)
			require.Contains(t, fix, "run: nft delete table "+table)
		}
		verdict, _ := line(t, report, "interface kubelb-watch")
		require.Equal(t, "LIMITED", verdict)
		report, _ = h.preflight("--backend="+backend, "--try-every=0")
		require.NotContains(t, report, "interface kubelb-watch")
	}
}

func TestWithoutTheCapabilityNothingIsGuessed(t *testing.T) {
	h := newHost(t, forwards...)
	report, status := h.run("setpriv", "--bounding-set=-net_admin,-sys_admin,-bpf", "--inh-caps=-net_admin,-sys_admin,-bpf", manager(), "preflight", "--announce=none", "--metrics-addr=0", "--health-probe-bind-address=0")
	require.Equal(t, 1, status, report)
	verdict, fix := line(t, report, "capability NET_ADMIN")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "run it as root; in a container, add NET_ADMIN to securityContext.capabilities.add; in a unit of systemd, add CAP_NET_ADMIN to AmbientCapabilities and CapabilityBoundingSet", fix)
	for _, module := range []string{"module nf_tables", "module veth"} {
		verdict, fix = line(t, report, module)
		require.Equal(t, "unknown", verdict, module)
		require.Empty(t, fix, module)
	}
	report, _ = h.run("setpriv", "--bounding-set=-net_admin,-sys_admin,-bpf", "--inh-caps=-net_admin,-sys_admin,-bpf", manager(), "preflight", "--backend=ebpf", "--announce=none", "--metrics-addr=0", "--health-probe-bind-address=0")
	require.NotContains(t, report, "MEMLOCK")
	require.NotContains(t, report, "this kernel does not have it")
}

func TestADataplaneThatCannotBeAskedLeavesTheRestToBeSaid(t *testing.T) {
	h := newHost(t, forwards...)
	report, status := h.preflight("--backend=nosuch")
	require.Equal(t, 2, status, report)
	require.Contains(t, report, "no binary kubelb-backend-nosuch")
	verdict, _ := line(t, report, "interface eth0")
	require.Equal(t, "ok", verdict)
	report, status = h.preflight("--backend=ebpf", "--backend-option=xdp=fast")
	require.Equal(t, 2, status, report)
	require.Contains(t, report, "give one of auto, native, generic, off")
	report, status = h.preflight("--announce=letters")
	require.Equal(t, 2, status, report)
	require.Contains(t, report, "use layer2, bgp or none")
}

func TestTheCommandIsInTheUsage(t *testing.T) {
	h := newHost(t)
	usage, status := h.run(manager(), "--help")
	require.Zero(t, status)
	require.Contains(t, usage, "kubelb-manager preflight [flags]")
	usage, status = h.run(manager(), "preflight", "--help")
	require.Zero(t, status)
	require.Contains(t, usage, "-announce-interfaces")
	require.Contains(t, usage, "Exit status: 1 if a line says MISSING")
	require.Contains(t, usage, "ok       it is there, or nothing that you asked for needs it")
	_, status = h.run(manager(), "preflight", "--nosuch")
	require.Equal(t, 2, status)
}
