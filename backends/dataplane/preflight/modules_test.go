package preflight

import (
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
)

const release = "6.1.0-13-amd64"

// hostWith returns a host with these files.
func hostWith(t *testing.T, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return Host{Root: root, Release: release}
}

// modulesDir is the directory of the kernel's modules.
const modulesDir = "lib/modules/" + release + "/"

// lists returns the files of a distribution in which nft_ct is a module and nf_tables is built in.
func lists(more map[string]string) map[string]string {
	files := map[string]string{
		"proc/modules":                 "nft_nat 16384 0 - Live 0x0000000000000000\nnf-odd 1 0\n",
		modulesDir + "modules.builtin": "kernel/net/netfilter/nf_tables.ko\n",
		modulesDir + "modules.dep":     "kernel/net/netfilter/nft_ct.ko.zst: kernel/net/netfilter/nf_tables.ko.zst\nkernel/net/sched/sch-ingress.ko:\n",
	}
	for name, content := range more {
		files[name] = content
	}
	return files
}

func TestPresence(t *testing.T) {
	for name, c := range map[string]struct {
		files          map[string]string
		module, option string
		want           Presence
	}{
		"it is in the list of loaded ones":              {lists(nil), "nft_nat", "NFT_NAT", Loaded},
		"the kernel says so, and the list is hidden":    {map[string]string{"sys/module/nft_nat/initstate": "live\n"}, "nft_nat", "NFT_NAT", Loaded},
		"it is in the list of built-in ones":            {lists(nil), "nf_tables", "NF_TABLES", BuiltIn},
		"the kernel is built with it, and has no lists": {map[string]string{"boot/config-" + release: "CONFIG_NFT_CT=y\n"}, "nft_ct", "NFT_CT", BuiltIn},
		"its compressed file is there":                  {lists(nil), "nft_ct", "NFT_CT", Loadable},
		"its file has a hyphen":                         {lists(nil), "sch_ingress", "NET_SCH_INGRESS", Loadable},
		"its file is not there":                         {lists(nil), "nft_hash", "NFT_HASH", NotInstalled},
		"its file is in a package that is not there":    {lists(map[string]string{modulesDir + "config": "CONFIG_NFT_HASH=m\n"}), "nft_hash", "NFT_HASH", NotInstalled},
		"the kernel is built without it":                {lists(map[string]string{"boot/config-" + release: "# CONFIG_NFT_HASH is not set\nCONFIG_NFT_CT=m\n"}), "nft_hash", "NFT_HASH", NotBuilt},
		"the kernel was upgraded since it was booted":   {map[string]string{"lib/modules/6.1.0-99-amd64/modules.dep": "kernel/nft_ct.ko:\n"}, "nft_ct", "NFT_CT", OtherRelease},
		"there are no lists, as in a container":         {map[string]string{"proc/modules": "nft_nat 1 0\n"}, "nft_ct", "NFT_CT", Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, hostWith(t, c.files).Modules().Presence(c.module, c.option))
		})
	}
}

func TestKernelOptionsAreReadFromProcFirst(t *testing.T) {
	host := hostWith(t, map[string]string{"boot/config-" + release: "CONFIG_NFT_CT=m\n"})
	require.NoError(t, os.MkdirAll(host.path("proc"), 0o755))
	file, err := os.Create(host.path("proc/config.gz"))
	require.NoError(t, err)
	text := gzip.NewWriter(file)
	_, err = text.Write([]byte("CONFIG_NFT_CT=y\n# CONFIG_NFT_NAT is not set\n"))
	require.NoError(t, err)
	require.NoError(t, text.Close())
	require.NoError(t, file.Close())
	value, known := host.Modules().Option("NFT_CT")
	require.True(t, known)
	require.Equal(t, "y", value, "the value of the running kernel, not of a file in /boot")
	value, known = host.Modules().Option("NFT_NAT")
	require.True(t, known)
	require.Empty(t, value)
}

func TestAMissingModuleHasTheCommandThatFixesIt(t *testing.T) {
	const load = "modprobe nft_ct && echo nft_ct >> /etc/modules-load.d/kubelb.conf"
	ubuntu := map[string]string{"etc/os-release": "NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n", modulesDir + "modules.dep": "kernel/other.ko:\n"}
	rocky := map[string]string{"etc/os-release": "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", modulesDir + "modules.dep": "kernel/other.ko:\n"}
	for name, c := range map[string]struct {
		files                  map[string]string
		found, command, advice string
	}{
		"it can be loaded":                        {lists(nil), "not loaded", load, ""},
		"it is in Ubuntu's other package":         {ubuntu, "not among the modules of this kernel (" + release + ")", "apt-get install -y linux-modules-extra-" + release + " && " + load, ""},
		"it is in the other package of RHEL":      {rocky, "not among the modules of this kernel (" + release + ")", "dnf install -y kernel-modules-extra-" + release + " && " + load, ""},
		"it is in an unknown package":             {map[string]string{modulesDir + "modules.dep": "kernel/other.ko:\n"}, "not among the modules of this kernel (" + release + ")", "", "install the package with all modules"},
		"the kernel is built without it":          {map[string]string{"boot/config-" + release: "CONFIG_NFT_NAT=m\n"}, "this kernel is built without CONFIG_NFT_CT", "", "boot a kernel that is built with CONFIG_NFT_CT"},
		"the kernel was upgraded":                 {map[string]string{"lib/modules/9.9/modules.dep": ""}, "modules of other kernels", "reboot", "upgraded since it was booted"},
		"nothing tells, as in a container":        {nil, "/lib/modules cannot be read here", load, "where modprobe does not find the module, boot a kernel"},
		"the kernel loads none any more":          {lists(map[string]string{"proc/sys/kernel/modules_disabled": "1\n"}), "not loaded", "echo nft_ct >> /etc/modules-load.d/kubelb.conf && reboot", "kernel.modules_disabled is 1"},
		"it is loaded, and the kernel refuses it": {map[string]string{"proc/modules": "nft_ct 1 0\n"}, "loaded, and the kernel refuses to use it here", "", "dmesg"},
	} {
		t.Run(name, func(t *testing.T) {
			check := hostWith(t, c.files).Modules().Check("nft_ct", "NFT_CT", Fails, "")
			require.Equal(t, dataplane.CheckMissing, check.State)
			require.Contains(t, check.Found, c.found)
			require.Equal(t, c.command, check.Command)
			require.Contains(t, check.Advice, c.advice)
			require.NotEmpty(t, check.Fix())
		})
	}
}

func TestATrialCountsMoreThanLists(t *testing.T) {
	m := hostWith(t, nil).Modules()
	check := m.Check("nft_ct", "NFT_CT", Works, "")
	require.Equal(t, dataplane.CheckOK, check.State, "a container has no lists")
	require.Empty(t, check.Fix())
	require.Equal(t, dataplane.CheckUnknown, m.Check("nft_ct", "NFT_CT", NotTried, "").State)
	m = hostWith(t, lists(nil)).Modules()
	require.Equal(t, dataplane.CheckOK, m.Check("nft_ct", "NFT_CT", NotTried, "").State, "the kernel loads it when it is used")
	require.Equal(t, dataplane.CheckMissing, m.Check("nft_hash", "NFT_HASH", NotTried, "").State)
	require.Equal(t, "limits", m.Check("nft_hash", "NFT_HASH", Fails, "limits").Costs)
}
