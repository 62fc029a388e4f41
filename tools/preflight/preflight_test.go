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

// host is a network namespace in which the command runs.
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
	peer, err := lab.Namespace("other")
	require.NoError(t, err)
	require.NoError(t, lab.Link(netlab.Interface{Namespace: ns, Name: "eth0"}, netlab.Interface{Namespace: peer, Name: "peer"}))
	return &host{Namespace: ns, t: t, lab: lab}
}

// forwards are the sysctls that a gateway needs.
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

// preflight runs the command with the flags of most tests, and with these flags.
func (h *host) preflight(flags ...string) (report string, status int) {
	h.t.Helper()
	return h.run(append([]string{manager(), "preflight", "--announce-interfaces=eth0", "--metrics-addr=127.0.0.1:9443", "--health-probe-bind-address=127.0.0.1:8081"}, flags...)...)
}

// line finds the line about a subject, and returns its verdict and the fix on the next line.
func line(t *testing.T, report, subject string) (verdict, fix string) {
	t.Helper()
	found := regexp.MustCompile(`(?m)^((\w+) +\w+ +` + regexp.QuoteMeta(subject) + ` .*)\n( {9}(.*))?`).FindStringSubmatch(report)
	require.NotNil(t, found, "no line about %s:\n%s", subject, report)
	return found[2], found[4]
}

// applyFix runs the command that a fix names. The files that it writes below /etc/sysctl.d are discarded.
func (h *host) applyFix(fix string) {
	h.t.Helper()
	command, isCommand := strings.CutPrefix(fix, "run: ")
	require.True(h.t, isCommand, "%q is not a command", fix)
	out, status := h.run("unshare", "--mount", "sh", "-ec", "mount -t tmpfs tmpfs /etc/sysctl.d; "+command)
	require.Zero(h.t, status, "%s: %s", command, out)
}

// waitUntilReady returns the report once nothing is missing. The kernel detects a carrier with a delay.
func (h *host) waitUntilReady(flags ...string) (report string) {
	h.t.Helper()
	for range 50 {
		var status int
		if report, status = h.preflight(flags...); status == 0 {
			return report
		}
		time.Sleep(200 * time.Millisecond)
	}
	require.Fail(h.t, "something is still missing", report)
	return ""
}

// backends are the dataplanes to test: all, or the one in KUBELB_BACKEND.
func backends() []string {
	if one := os.Getenv("KUBELB_BACKEND"); one != "" {
		return []string{one}
	}
	return []string{"nftables", "ebpf", "envoy"}
}

func TestAReadyHostLacksNothing(t *testing.T) {
	h := newHost(t, forwards...)
	for _, backend := range backends() {
		report, status := h.preflight("--backend=" + backend)
		require.Zero(t, status, report)
		require.NotContains(t, report, "MISSING ", report)
		require.Contains(t, report, "0 MISSING", report)
	}
}

// missingInKernel matches the lines about features that the kernel lacks, and that no command can load.
var missingInKernel = regexp.MustCompile(`(?m)^MISSING +(Kernel|BTF) .*`)

// refusals returns, by dataplane, the first line about a feature that the kernel lacks. On such a kernel the host never becomes ready, and under emulation
// each subtest would wait for minutes.
func refusals(backends []string, report func(backend string) string) map[string]string {
	refused := map[string]string{}
	for _, backend := range backends {
		if found := missingInKernel.FindString(report(backend)); found != "" {
			refused[backend] = found
		}
	}
	return refused
}

// supported returns the dataplanes that this kernel supports. It skips the test if there are none: TestAReadyHostLacksNothing fails for each of the others.
func supported(t *testing.T) []string {
	t.Helper()
	h := newHost(t, forwards...)
	refused := refusals(backends(), func(backend string) string {
		report, _ := h.preflight("--backend=" + backend)
		return report
	})
	list := slices.DeleteFunc(backends(), func(backend string) bool { return refused[backend] != "" })
	if len(list) == 0 {
		t.Skipf("no dataplane supports this kernel: %v", refused)
	}
	return list
}

// in returns the host for a subtest.
func (h *host) in(t *testing.T) *host {
	t.Helper()
	return &host{h.Namespace, t, h.lab}
}

func TestTheCommandOfAFixSolvesTheProblem(t *testing.T) {
	disable := func(key string) func(*host) { return func(h *host) { h.run("sysctl", "-w", key+"=0") } }
	list := supported(t)
	for name, c := range map[string]struct {
		breaks           func(*host)
		subject, verdict string
		// backends are the dataplanes that need it. Empty is all of them, since the gateway itself needs it.
		backends []string
	}{
		"IPv4 is not forwarded": {disable("net.ipv4.ip_forward"), "sysctl net.ipv4.ip_forward", "MISSING", []string{"nftables"}},
		"IPv6 is not forwarded": {disable("net.ipv6.conf.all.forwarding"), "sysctl net.ipv6.conf.all.forwarding", "MISSING", []string{"nftables"}},
		// In eBPF each frontend needs forwarding of its own family. Envoy needs none: clients connect to the host itself.
		"IPv4 alone is not forwarded":              {disable("net.ipv4.ip_forward"), "sysctl net.ipv4.ip_forward", "LIMITED", []string{"ebpf"}},
		"IPv6 alone is not forwarded":              {disable("net.ipv6.conf.all.forwarding"), "sysctl net.ipv6.conf.all.forwarding", "LIMITED", []string{"ebpf"}},
		"conntrack is strict":                      {disable("net.netfilter.nf_conntrack_tcp_loose"), "sysctl net.netfilter.nf_conntrack_tcp_loose", "LIMITED", []string{"nftables"}},
		"reverse path filtering of the interface":  {func(h *host) { h.run("sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=1") }, "sysctl net.ipv4.conf.eth0.rp_filter", "LIMITED", nil},
		"reverse path filtering of all interfaces": {func(h *host) { h.run("sysctl", "-w", "net.ipv4.conf.all.rp_filter=1") }, "sysctl net.ipv4.conf.eth0.rp_filter", "LIMITED", nil},
		"the interface is down":                    {func(h *host) { require.NoError(h.t, h.SetLink("eth0", false)) }, "interface eth0", "MISSING", nil},
	} {
		for _, backend := range list {
			if c.backends != nil && !slices.Contains(c.backends, backend) {
				continue
			}
			t.Run(backend+"/"+name, func(t *testing.T) {
				h := newHost(t, forwards...)
				c.breaks(h)
				report, status := h.preflight("--backend=" + backend)
				verdict, fix := line(t, report, c.subject)
				require.Equal(t, c.verdict, verdict, report)
				require.Equal(t, map[string]int{"MISSING": 1, "LIMITED": 0}[c.verdict], status)
				h.applyFix(fix)
				report = h.waitUntilReady("--backend=" + backend)
				verdict, fix = line(t, report, c.subject)
				require.Equal(t, "ok", verdict)
				require.Empty(t, fix)
			})
		}
	}
}

// kernelModules loads and unloads modules of the kernel.
type kernelModules struct {
	// autoload is the file with the path of the program that the kernel runs to load a module.
	autoload     string
	remove, load func(module string) error
}

func hostModules() kernelModules {
	return kernelModules{"/proc/sys/kernel/modprobe",
		func(module string) error { return unix.DeleteModule(module, unix.O_NONBLOCK) },
		func(module string) error {
			if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
				return fmt.Errorf("load module %s: %w\n%s", module, err, out)
			}
			return nil
		}}
}

// unload removes a module, and prevents that the kernel loads it, until the test ends. It returns false if the module is built in or another one needs it.
func (m kernelModules) unload(t *testing.T, module string) bool {
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

// needsNoModule reports whether the dataplane works without modules that can be unloaded. eBPF does on a kernel with tcx.
func needsNoModule(backend, report string) bool {
	return backend == "ebpf" && regexp.MustCompile(`(?m)^ok +\w+ +tcx +it is there`).MatchString(report)
}

// Each module that the report says the dataplane uses is unloaded in turn.
func TestTheCommandOfAFixLoadsAModule(t *testing.T) {
	if os.Getenv("KUBELB_UNLOAD_MODULES") == "" {
		t.Skip("unloads modules: make kernels CASE=preflight runs it in an emulated kernel")
	}
	all, prepared := t, newHost(t, forwards...)
	for _, backend := range supported(t) {
		report, _ := prepared.preflight("--backend=" + backend)
		unloaded := 0
		for _, found := range regexp.MustCompile(`(?m)^ok +Modules +module (\w+) `).FindAllStringSubmatch(report, -1) {
			module := found[1]
			t.Run(backend+"/"+module, func(t *testing.T) {
				if !hostModules().unload(t, module) {
					return
				}
				unloaded++
				h := prepared.in(t)
				report, _ := h.preflight("--backend=" + backend)
				verdict, fix := line(t, report, "module "+module)
				require.Contains(t, []string{"MISSING", "LIMITED"}, verdict, report)
				t.Logf("%s without %s: %s; %s", backend, module, verdict, fix)
				h.applyFix(fix)
				if module == "veth" { // the removal of the module has deleted eth0, which is a veth
					prepared = newHost(all, forwards...)
					h = prepared.in(t)
				}
				report = h.waitUntilReady("--backend=" + backend)
				verdict, _ = line(t, report, "module "+module)
				require.Equal(t, "ok", verdict, report)
			})
		}
		t.Logf("%s: %d modules were unloaded", backend, unloaded)
		require.True(t, unloaded > 0 || needsNoModule(backend, report), "%s: no module could be unloaded, so the test shows nothing:\n%s", backend, report)
	}
}

func TestOneReportNamesAllThatIsMissing(t *testing.T) {
	h := newHost(t)
	require.NoError(t, h.SetLink("eth0", false))
	report, status := h.preflight()
	require.Equal(t, 1, status)
	require.Contains(t, report, "3 MISSING")
}

// eBPF works if the host forwards one family. Envoy needs no forwarding: clients connect to the host itself.
func TestForwardingOfNeitherFamilyIsReported(t *testing.T) {
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

func TestAPreparedHostIsReady(t *testing.T) {
	h := newHost(t)
	report, status := h.preflight("--prepare-host")
	require.Zero(t, status, report)
	report, status = h.preflight()
	require.Zero(t, status, report)
}

func TestReportOnlyExitsWithZero(t *testing.T) {
	report, status := newHost(t).preflight("--report-only")
	require.Contains(t, report, "MISSING  Sysctls")
	require.Zero(t, status)
}

func TestTheFixOfAMissingInterfaceNamesExistingOnes(t *testing.T) {
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

func TestAnInterfaceWithoutACarrierIsMissing(t *testing.T) {
	h := newHost(t, forwards...)
	_, status := h.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "end")
	require.Zero(t, status)
	require.NoError(t, h.SetLink("eth1", true))
	report, status := h.preflight("--announce-interfaces=eth1")
	require.Equal(t, 1, status)
	verdict, fix := line(t, report, "interface eth1")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "connect its cable, or bring up the device at the other end", fix)
	require.NoError(t, h.SetLink("end", true))
	h.waitUntilReady("--announce-interfaces=eth1")
}

// The gateway would be no candidate for addresses of the family.
func TestAnInterfaceWithoutAFamilyLimitsTheFamily(t *testing.T) {
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
	h.applyFix(fix)
	report, _ = h.preflight()
	require.NotContains(t, report, "IPv6 is turned off")
	report, _ = h.preflight("--announce=bgp")
	require.NotContains(t, report, "IPv4 at interface", "addresses are announced to routers")
}

func TestTheLoopbackInterfaceIsRefused(t *testing.T) {
	report, _ := newHost(t, forwards...).preflight("--announce-interfaces=lo")
	verdict, fix := line(t, report, "interface lo")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "name an Ethernet interface by --announce-interfaces, or use --announce=bgp", fix)
}

func TestAPortInUseIsReportedWithItsProcess(t *testing.T) {
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
	require.Equal(t, "end that program, or choose another port by --metrics-addr", fix)
	report, status = h.preflight("--metrics-addr=127.0.0.1:9444")
	require.Zero(t, status, report)
	require.NoError(t, listener.Close())
	report, status = h.preflight()
	require.Zero(t, status, report)
}

func TestAForeignTableOfTheSameNameIsReportedAndNotChanged(t *testing.T) {
	h := newHost(t, forwards...)
	_, status := h.run("nft", "add table ip kubelb; add chain ip kubelb foreign")
	require.Zero(t, status)
	report, status := h.preflight()
	require.Equal(t, 1, status)
	verdict, fix := line(t, report, "nftables table ip kubelb")
	require.Equal(t, "MISSING", verdict)
	require.Equal(t, "run: nft delete table ip kubelb     # or use another name for KubeLB's tables with --backend-option table=NAME", fix)
	rules, _ := h.run("nft", "list", "ruleset")
	require.Contains(t, rules, "chain foreign")
	require.NotContains(t, rules, "preflight", "preflight removes its trial tables")
	report, status = h.preflight("--backend-option=table=other")
	require.Zero(t, status, report)
}

// A starting gateway removes the tables of other dataplanes, its filter, and the interfaces by which it tries its ports. The report names all that exist.
func TestTheReportNamesWhatAStartWouldRemove(t *testing.T) {
	h := newHost(t, forwards...)
	tables := map[string][]string{"ebpf": {"ip kubelb-ebpf", "ip6 kubelb-ebpf-end", "inet kubelb-transit"}, "envoy": {"ip kubelb-envoy", "netdev kubelb-envoy", "inet kubelb-transit"}, "nftables": {"inet kubelb-transit"}}
	for _, table := range []string{"ip kubelb-ebpf", "ip6 kubelb-ebpf-end", "inet kubelb-transit", "ip kubelb-envoy", "netdev kubelb-envoy"} {
		out, status := h.run("nft", "add table "+table+"; add chain "+table+" foreign")
		require.Zero(t, status, out)
	}
	out, status := h.run("ip", "link", "add", "kubelb-watch", "type", "veth", "peer", "name", "foreign")
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

func TestWithoutNetAdminModulesAreUnknown(t *testing.T) {
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

func TestTheRestIsReportedIfTheDataplaneFails(t *testing.T) {
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

func TestTheUsageNamesThePreflight(t *testing.T) {
	h := newHost(t)
	usage, status := h.run(manager(), "--help")
	require.Zero(t, status)
	require.Contains(t, usage, "kubelb-manager preflight [flags]")
	usage, status = h.run(manager(), "preflight", "--help")
	require.Zero(t, status)
	require.Contains(t, usage, "-announce-interfaces")
	require.Contains(t, usage, "Exit status: 1 if a line says MISSING")
	require.Contains(t, usage, "ok       it exists, or nothing that you asked for needs it")
	_, status = h.run(manager(), "preflight", "--nosuch")
	require.Equal(t, 2, status)
}
