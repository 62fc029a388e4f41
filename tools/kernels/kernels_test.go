package kernels

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/kernels/guest"
)

func TestAKernelIsNamedBySeriesAndArchitecture(t *testing.T) {
	spec, err := ParseSpec("6.12/arm64")
	require.NoError(t, err)
	require.Equal(t, Spec{"6.12", "arm64"}, spec)
	for _, wrong := range []string{"", "6.12", "/amd64", "6.12/riscv64"} {
		_, err := ParseSpec(wrong)
		require.ErrorContains(t, err, "give SERIES/amd64 or SERIES/arm64", wrong)
	}
}

// Make builds programs for the kernel's architecture before any of this package's code runs.
func TestMakeRefusesAKernelWithoutAnArchitectureBeforeItBuilds(t *testing.T) {
	named := func(kernel string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "make", "--no-print-directory", "-C", "../..", "kernel-named", "KERNEL="+kernel).CombinedOutput()
		return string(out), err
	}
	for arch := range machines {
		out, err := named("6.8/" + arch)
		require.NoError(t, err, out)
	}
	out, err := named("running")
	require.NoError(t, err, out)
	for _, wrong := range []string{"6.8", "/amd64", "6.8/riscv64", "running/amd64/"} {
		out, err := named(wrong)
		require.Error(t, err, wrong)
		require.Contains(t, out, "KERNEL="+wrong+": give KERNEL=SERIES/amd64 or KERNEL=SERIES/arm64")
	}
	makefile, err := os.ReadFile("../../Makefile")
	require.NoError(t, err)
	require.Contains(t, string(makefile), "\nguest: kernel-named ", "the check is the first prerequisite")
}

func TestModulesAreFoundByNameAndAliasAndOrderedByNeed(t *testing.T) {
	modules := guest.Modules{
		"nf_conntrack":   {Path: "/c", Needs: []string{"nf_defrag_ipv4", "libcrc32c"}},
		"nf_defrag_ipv4": {Path: "/d"},
		"nft_ct":         {Path: "/t", Needs: []string{"nf_tables", "nf_conntrack"}, Aliases: []string{"nft-expr-ct"}},
		"nf_tables":      {Path: "/n", Needs: []string{"libcrc32c"}},
		"virtio_console": {Path: "/v", Aliases: []string{"virtio:d00000003v*"}},
	}
	require.Equal(t, []string{"nft_ct"}, modules.Find("nft-expr-ct"))
	require.Equal(t, []string{"nft_ct"}, modules.Find("nft-ct"))
	require.Equal(t, []string{"virtio_console"}, modules.Find("virtio:d00000003v00001af4"))
	require.Empty(t, modules.Find("nft-expr-flow"))
	require.Equal(t, []string{"libcrc32c", "nf_tables", "nf_defrag_ipv4", "nf_conntrack", "nft_ct"}, modules.Order("nft_ct"), "dependencies that are built in are in the order, too")
}

func TestEachCaseOfEachDataplaneIsAStepOfItsOwn(t *testing.T) {
	j := Tester{Backends: []string{"nftables", "ebpf"}, Cases: []string{Preflight, Fixtures, "tcp-echo"}, Patience: 8, Programs: "/p"}
	var names []string
	for _, s := range j.steps(Kernel{image: "vmlinuz"}, "/r") {
		names = append(names, s.Name)
	}
	require.Equal(t, []string{"nftables:preflight", "nftables:tcp-echo", "ebpf:preflight", "ebpf:packet-fixtures", "ebpf:tcp-echo"}, names, "only eBPF has packet fixtures")
	booted := j.steps(Kernel{image: "vmlinuz"}, "/r")[1]
	require.Equal(t, "/programs/kubelb-conformance", booted.Args[0])
	require.Subset(t, booted.Args, []string{"--patience=8", "--report=/results/nftables:tcp-echo"})
	here := j.steps(Kernel{}, "/r")[1]
	require.Equal(t, "/p/kubelb-conformance", here.Args[0])
	require.Contains(t, here.Args, "--report=/r/nftables:tcp-echo")
}

func TestTheRunningKernelIsJudgedWithoutABoot(t *testing.T) {
	k, err := Running()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(k.Release, k.Series+"."), "%s of %s", k.Release, k.Series)
	var out bytes.Buffer
	statuses := map[string]int{}
	ended := func(e StepResult) { statuses[e.Step.Name] = e.Status }
	steps := []guest.Step{{Name: "fails", Args: []string{"sh", "-c", "echo no; exit 3"}}, {Name: "works", Args: []string{"true"}}, {Name: "hangs", Args: []string{"sleep", "600"}, Limit: 100 * time.Millisecond}}
	require.NoError(t, runHere(t.Context(), steps, &out, ended))
	require.Equal(t, map[string]int{"fails": 3, "works": 0, "hangs": guest.StatusLimit}, statuses)
	require.Equal(t, "no\nkernels: ended fails 3\nkernels: ended works 0\nkernels: ended hangs 124\n", out.String())
	require.ErrorContains(t, runHere(t.Context(), []guest.Step{{Name: "absent", Args: []string{"/nowhere/program"}}}, &out, ended), "step absent")
}

// bootable returns a kernel and a run. It skips the test unless make kernels-smoke has built the guest's programs.
func bootable(t *testing.T) (Kernel, Run, *bytes.Buffer) {
	t.Helper()
	programs := os.Getenv("KUBELB_GUEST")
	if programs == "" {
		t.Skip("boots kernels: make kernels-smoke sets KUBELB_GUEST")
	}
	cache, err := DefaultCache(os.Stderr)
	require.NoError(t, err)
	k, err := cache.Kernel(t.Context(), Spec{"6.12", "amd64"}, false)
	require.NoError(t, err)
	userland, err := cache.Userland(t.Context(), "amd64")
	require.NoError(t, err)
	var out bytes.Buffer
	return k, Run{Userland: userland, Init: filepath.Join(programs, "amd64", "init"), ResultsDir: t.TempDir(), Console: &out, Silence: time.Minute}, &out
}

func TestAKernelEndsWithTheStatusOfItsPrograms(t *testing.T) {
	k, run, out := bootable(t)
	run.Modules = []string{"nf_conntrack"}
	run.Steps = []guest.Step{{Name: "fails", Args: []string{"/usr/sbin/nft", "nonsense"}}, {Name: "hangs", Args: []string{"/usr/sbin/nft", "monitor"}, Limit: time.Second},
		{Name: "warned", Args: []string{"/bin/sh", "-c", "echo '<4>WARNING: CPU: 0 PID: 1 at nothing' > /dev/kmsg; /usr/bin/busybox sleep 3"}}, {Name: "works", Args: []string{"/usr/sbin/nft", "add table inet x { chain y { ct state new counter; }; }"}}}
	troubles := map[string]string{}
	run.Ended = func(e StepResult) { troubles[e.Step.Name] = e.KernelError }
	steps, err := k.Boot(t.Context(), run)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"fails": 1, "hangs": guest.StatusLimit, "warned": 0, "works": 0}, steps, out.String())
	require.Equal(t, map[string]string{"fails": "", "hangs": "", "warned": "WARNING: CPU: 0 PID: 1 at nothing", "works": ""}, troubles)
	require.Contains(t, out.String(), "syntax error")
}

func TestAKernelPanicIsACrashWithTheLastLines(t *testing.T) {
	k, run, _ := bootable(t)
	run.Steps = []guest.Step{{Name: "panics", Args: []string{"/init", guest.Panic}}}
	_, err := k.Boot(t.Context(), run)
	require.ErrorContains(t, err, "the machine ended before its plan")
	var crash *Crash
	require.ErrorAs(t, err, &crash)
	require.Equal(t, "panics", crash.Step.Name)
	require.Contains(t, crash.Reason, "the kernel panicked: Kernel panic")
}

func TestASilentKernelIsAFailure(t *testing.T) {
	k, run, _ := bootable(t)
	run.Silence = 15 * time.Second
	run.Steps = []guest.Step{{Name: "sleeps", Args: []string{"/usr/sbin/nft", "monitor"}}}
	_, err := k.Boot(t.Context(), run)
	require.ErrorIs(t, err, errSilent)
}
