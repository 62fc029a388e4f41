package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
)

// typesWith returns the types of a kernel that has these functions.
func typesWith(t *testing.T, functions ...string) *btf.Spec {
	types := []btf.Type{&btf.Int{Name: "int", Size: 4}}
	for _, name := range functions {
		types = append(types, &btf.Func{Name: name, Type: &btf.FuncProto{Return: &btf.Void{}}, Linkage: btf.StaticFunc})
	}
	builder, err := btf.NewBuilder(types, nil)
	require.NoError(t, err)
	spec, err := builder.Spec()
	require.NoError(t, err)
	return spec
}

// rootWith returns a root directory with these paths.
func rootWith(t *testing.T, paths ...string) string {
	root := t.TempDir()
	for _, path := range paths {
		require.NoError(t, os.MkdirAll(filepath.Join(root, path), 0o700))
	}
	return root
}

func TestConnectionTrackingIsDetected(t *testing.T) {
	const asModule, asPart, types = "sys/module/nf_conntrack", "proc/sys/net/netfilter/nf_conntrack_max", "sys/kernel/btf/nf_conntrack"
	for name, c := range map[string]struct {
		functions []string // of the kernel itself
		paths     []string
		seen      bool
		fault     string
	}{
		"built into the kernel":                                            {functions: trackingFunctions, paths: []string{asPart}, seen: true},
		"not present":                                                      {},
		"a module without types":                                           {paths: []string{asModule, asPart}, seen: true, fault: "CONFIG_DEBUG_INFO_BTF_MODULES"},
		"built into a kernel that lacks both functions":                    {paths: []string{asPart}, seen: true, fault: "kernel function bpf_skb_ct_lookup (Linux 5.19)"},
		"built into a kernel that lacks one function":                      {functions: trackingFunctions[:1], paths: []string{asPart}, seen: true, fault: "kernel function bpf_ct_release (Linux 5.19)"},
		"a module whose types cannot be read, or that lacks the functions": {paths: []string{asModule, types}, seen: true, fault: "cannot call connection tracking"},
	} {
		old := func() (*btf.Spec, error) { return typesWith(t), nil }
		found := detectTrackingIn(typesWith(t, c.functions...), old, rootWith(t, c.paths...))
		require.Equal(t, c.seen, found.present, name)
		if c.fault == "" {
			require.NoError(t, found.fault(), name)
			continue
		}
		require.False(t, found.usable(), name)
		require.ErrorContains(t, found.fault(), c.fault, name)
	}
}

func TestPreflightReportsThatConnectionTrackingCannotBeCalled(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		require.Contains(b, tracking{}.check().Found, "no calls are needed")
		cannot := detectTrackingIn(typesWith(t), nil, rootWith(t, "sys/module/nf_conntrack"))
		without := cannot.check()
		require.Equal(b, dataplane.CheckOK, without.State)
		require.Contains(b, without.Found, "CONFIG_DEBUG_INFO_BTF_MODULES")
		require.Contains(b, without.Found, "no connection ends")

		b.addTableOfNftables()
		beside := cannot.check()
		require.Equal(b, dataplane.CheckMissing, beside.State)
		require.Contains(b, beside.Advice, "CONFIG_DEBUG_INFO_BTF_MODULES")
	})
}

// hideTracking makes the backend find no connection tracking. The returned function ends that.
func (b *testGateway) hideTracking() (come func()) {
	k := b.backend.kernel
	k.tracking, k.root = tracking{}, rootWith(b.T)
	return func() {
		require.NoError(b, os.MkdirAll(trackingFiles(k.root)[0], 0o700))
	}
}

// programAt returns the id of the tc program at the interface.
func (b *testGateway) programAt(at *netlink.LinkAttrs) ebpf.ProgramID {
	require.Contains(b, b.backend.kernel.attached, at.Index, at.Name)
	switch h := b.backend.kernel.attached[at.Index].tc.(type) {
	case *filter:
		found, err := h.list()
		require.NoError(b, err)
		return ebpf.ProgramID(h.find(found).Id)
	case link.Link:
		info, err := h.Info()
		require.NoError(b, err)
		return info.Program
	}
	return 0
}

func (b *testGateway) loadedProgram() ebpf.ProgramID {
	info, err := b.backend.kernel.objects.LbTc.Info()
	require.NoError(b, err)
	id, _ := info.ID()
	return id
}

func TestProgramsAreLoadedAgainAfterTheStartOfConnectionTracking(t *testing.T) {
	for _, attach := range []string{attachAuto, attachClsact} {
		onGateway(t, func(b *testGateway) {
			b.restart(attach)
			come, before := b.hideTracking(), b.loadedProgram()
			require.NoError(b, b.backend.poll(false))
			require.Equal(b, before, b.loadedProgram(), "no connection tracking yet")
			come()
			require.NoError(b, b.backend.poll(false))
			require.True(b, b.backend.kernel.tracking.present)
			require.NotEqual(b, before, b.loadedProgram())
			require.Equal(b, b.loadedProgram(), b.programAt(b.front))
			require.Equal(b, b.loadedProgram(), b.programAt(b.back))
		})
	}
}

// failingHook is a hook whose next updates fail.
type failingHook struct {
	link.Link
	failures int
}

func (s *failingHook) Update(program *ebpf.Program) error {
	if s.failures--; s.failures >= 0 {
		return errors.New("the list was interrupted")
	}
	return s.Link.Update(program)
}

func TestAFailedReplacementIsRepeatedAtTheNextPoll(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		if checkTCX() != nil {
			return // the hook of this test is a link
		}
		b.restart(attachTCX)
		come, before := b.hideTracking(), b.loadedProgram()
		at := b.backend.kernel.attached[b.front.Index]
		at.tc = &failingHook{Link: at.tc.(link.Link), failures: 2}
		come()
		for range 2 {
			require.ErrorContains(b, b.backend.poll(false), "replace the program at interface front: the list was interrupted")
			require.Equal(b, before, b.programAt(b.front))
			require.Equal(b, b.loadedProgram(), b.programAt(b.back))
		}
		require.NoError(b, b.backend.poll(false))
		require.Equal(b, b.loadedProgram(), b.programAt(b.front))
	})
}
