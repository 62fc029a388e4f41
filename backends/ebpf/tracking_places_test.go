package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	nft "github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
)

// typesWith are the types of a kernel that has these functions.
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

// rootWith is a root directory with these files.
func rootWith(t *testing.T, paths ...string) string {
	root := t.TempDir()
	for _, path := range paths {
		require.NoError(t, os.MkdirAll(filepath.Join(root, path), 0o700))
	}
	return root
}

func TestConnectionTrackingIsAskedOrMissedByWhatTheKernelShows(t *testing.T) {
	const asModule, asPart, types = "sys/module/nf_conntrack", "proc/sys/net/netfilter/nf_conntrack_max", "sys/kernel/btf/nf_conntrack"
	for name, c := range map[string]struct {
		functions []string // of the kernel itself
		paths     []string
		seen      bool
		fault     string
	}{
		"it is part of the kernel":                         {functions: trackingFunctions, paths: []string{asPart}, seen: true},
		"it is not there":                                  {},
		"it is a module without types":                     {paths: []string{asModule, asPart}, seen: true, fault: "CONFIG_DEBUG_INFO_BTF_MODULES"},
		"it is part of a kernel that lacks both functions": {paths: []string{asPart}, seen: true, fault: "kernel function bpf_skb_ct_lookup (Linux 5.19)"},
		"it is part of a kernel that lacks one function":   {functions: trackingFunctions[:1], paths: []string{asPart}, seen: true, fault: "kernel function bpf_ct_release (Linux 5.19)"},
		"it is a module whose types are kept back, or old": {paths: []string{asModule, types}, seen: true, fault: "cannot ask connection tracking"},
	} {
		old := func() (*btf.Spec, error) { return typesWith(t), nil }
		found := trackingBeside(typesWith(t, c.functions...), old, rootWith(t, c.paths...))
		require.Equal(t, c.seen, found.seen, name)
		if c.fault == "" {
			require.NoError(t, found.fault(), name)
			continue
		}
		require.False(t, found.asked(), name)
		require.ErrorContains(t, found.fault(), c.fault, name)
	}
}

func TestPreflightSaysWhatEndsWhereConnectionTrackingCannotBeAsked(t *testing.T) {
	onBench(t, func(b *bench) {
		require.Contains(b, tracking{}.check().Found, "nothing to ask")
		cannot := trackingBeside(typesWith(t), nil, rootWith(t, "sys/module/nf_conntrack"))
		without := cannot.check()
		require.Equal(b, dataplane.CheckOK, without.State)
		require.Contains(b, without.Found, "CONFIG_DEBUG_INFO_BTF_MODULES")
		require.Contains(b, without.Found, "nothing is lost")

		c, err := nft.New()
		require.NoError(b, err)
		c.AddTable(&nft.Table{Name: nftablesTable, Family: nft.TableFamilyINet})
		require.NoError(b, c.Flush())
		beside := cannot.check()
		require.Equal(b, dataplane.CheckMissing, beside.State)
		require.Contains(b, beside.Advice, "CONFIG_DEBUG_INFO_BTF_MODULES")
	})
}

// missTracking has the backend believe that the kernel does not track connections. What it returns brings connection tracking.
func (b *bench) missTracking() (come func()) {
	k := b.backend.kernel
	k.tracking, k.root = tracking{}, rootWith(b.T)
	return func() {
		require.NoError(b, os.MkdirAll(trackingSigns(k.root)[0], 0o700))
	}
}

// runsAt is the number of the complete program at the interface.
func (b *bench) runsAt(at *netlink.LinkAttrs) ebpf.ProgramID {
	require.Contains(b, b.backend.kernel.attached, at.Index, at.Name)
	switch h := b.backend.kernel.attached[at.Index].tc.(type) {
	case *filter:
		found, err := h.list()
		require.NoError(b, err)
		return ebpf.ProgramID(h.own(found).Id)
	case link.Link:
		info, err := h.Info()
		require.NoError(b, err)
		return info.Program
	}
	return 0
}

func (b *bench) loaded() ebpf.ProgramID {
	info, err := b.backend.kernel.objects.LbTc.Info()
	require.NoError(b, err)
	id, _ := info.ID()
	return id
}

func TestProgramsAreLoadedAnewOnceConnectionTrackingHasCome(t *testing.T) {
	for _, attach := range []string{attachAuto, attachClsact} {
		onBench(t, func(b *bench) {
			b.restart(attach)
			come, before := b.missTracking(), b.loaded()
			require.NoError(b, b.backend.look(false))
			require.Equal(b, before, b.loaded(), "nothing has come")
			come()
			_ = b.backend.look(false) // which says so where this kernel has no functions to ask it
			require.True(b, b.backend.kernel.tracking.seen)
			require.NotEqual(b, before, b.loaded())
			require.Equal(b, b.loaded(), b.runsAt(b.front))
			require.Equal(b, b.loaded(), b.runsAt(b.back))
		})
	}
}

// stubborn is a place whose program cannot be replaced so many times.
type stubborn struct {
	link.Link
	times int
}

func (s *stubborn) Update(program *ebpf.Program) error {
	if s.times--; s.times >= 0 {
		return errors.New("the list was interrupted")
	}
	return s.Link.Update(program)
}

func TestAProgramThatCannotBeReplacedIsReplacedAtALaterLook(t *testing.T) {
	onBench(t, func(b *bench) {
		if haveTCX() != nil {
			return // the place that the test makes stubborn is a link
		}
		b.restart(attachTCX)
		come, before := b.missTracking(), b.loaded()
		at := b.backend.kernel.attached[b.front.Index]
		at.tc = &stubborn{Link: at.tc.(link.Link), times: 2}
		come()
		for range 2 {
			require.ErrorContains(b, b.backend.look(false), "replace the program at interface front: the list was interrupted")
			require.Equal(b, before, b.runsAt(b.front))
			require.Equal(b, b.loaded(), b.runsAt(b.back))
		}
		require.NoError(b, b.backend.look(false))
		require.Equal(b, b.loaded(), b.runsAt(b.front))
	})
}
