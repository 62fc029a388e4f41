package probe

import (
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// rules returns a part with one chain that has these rules.
func rules(costs string, all ...[]expr.Any) Part {
	return Part{Name: "rules", Costs: costs, Advice: "use a later kernel", Add: func(c *nft.Conn) error {
		table := c.AddTable(&nft.Table{Name: "test", Family: nft.TableFamilyIPv4})
		chain := c.AddChain(&nft.Chain{Table: table, Name: "chain", Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPrerouting, Priority: nft.ChainPriorityNATDest})
		for _, exprs := range all {
			c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
		return nil
	}}
}

var (
	tracked  = []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}
	limited  = []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: 1, Unit: expr.LimitTimeSecond}}
	refused  = []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}
	enqueued = []expr.Any{&expr.Queue{Num: 1}}
	counted  = []expr.Any{&expr.Dynset{SrcRegKey: 1, SetName: "set", Exprs: []expr.Any{&expr.Connlimit{Count: 1}}}}
)

// lacks returns a kernel without these expressions.
func lacks(names ...string) kernel {
	return func(messages []netlink.Message) (map[int]unix.Errno, error) {
		errs := map[int]unix.Errno{}
		for place, m := range messages {
			content := m.Data[headerLength:]
			used := []string{text(attribute(content, unix.NFTA_CHAIN_TYPE))}
			if kindOf(m) == unix.NFT_MSG_NEWRULE {
				for _, e := range expressionsOf(content) {
					used = append(used, text(attribute(e, unix.NFTA_EXPR_NAME)))
				}
			}
			for _, name := range names {
				for _, one := range used {
					if one == name {
						errs[place] = unix.ENOENT
					}
				}
			}
		}
		return errs, nil
	}
}

// missing returns the missing subjects, with their costs.
func missing(checks []dataplane.Check) map[string]string {
	out := map[string]string{}
	for _, c := range checks {
		if c.State == dataplane.CheckMissing {
			out[c.Subject] = c.Costs
		}
	}
	return out
}

func TestTheMissingModuleIsNamed(t *testing.T) {
	parts := []Part{rules("", tracked, refused), rules("limits", tracked, limited, counted)}
	for name, c := range map[string]struct {
		lacks []string
		want  map[string]string
	}{
		"nothing":                          {nil, map[string]string{}},
		"what all need":                    {[]string{"ct"}, map[string]string{"module nft_ct": ""}},
		"what one part needs":              {[]string{"limit"}, map[string]string{"module nft_limit": "limits"}},
		"an expression inside of another":  {[]string{"connlimit"}, map[string]string{"module nft_connlimit": "limits"}},
		"a module of the family alone":     {[]string{"reject"}, map[string]string{"module nft_reject_ipv4": ""}},
		"NAT":                              {[]string{"nat"}, map[string]string{"module nft_chain_nat": ""}},
		"several, each of which is named":  {[]string{"ct", "reject"}, map[string]string{"module nft_ct": "", "module nft_reject_ipv4": ""}},
		"what is in nf_tables itself only": {[]string{"dynset"}, map[string]string{"rules": "limits"}},
	} {
		t.Run(name, func(t *testing.T) {
			checks, err := checksBy(lacks(c.lacks...), preflight.Host{Root: t.TempDir(), Release: "6.1.0"}.Modules(), parts)
			require.NoError(t, err)
			require.Equal(t, c.want, missing(checks))
		})
	}
}

// offloaded returns a part with a flowtable, and a rule that adds flows to it.
func offloaded() Part {
	return Part{Name: "fast rules", Costs: "the fast path", Advice: "load nf_flow_table_inet", Add: func(c *nft.Conn) error {
		table := c.AddTable(&nft.Table{Name: "test", Family: nft.TableFamilyIPv4})
		c.AddFlowtable(&nft.Flowtable{Table: table, Name: "fast", Devices: []string{"lo"}})
		chain := c.AddChain(&nft.Chain{Table: table, Name: "chain", Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookForward, Priority: nft.ChainPriorityFilter})
		c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.FlowOffload{Name: "fast"}}})
		return nil
	}}
}

func TestTheModuleOfFlowtablesIsTriedWithAFlowtable(t *testing.T) {
	modules := preflight.Host{Root: t.TempDir(), Release: "6.1.0"}.Modules()
	checks, err := checksBy(func(messages []netlink.Message) (map[int]unix.Errno, error) {
		flowtables := false
		for place, m := range messages {
			flowtables = flowtables || kindOf(m) == unix.NFT_MSG_NEWFLOWTABLE
			if kindOf(m) == unix.NFT_MSG_NEWRULE && !flowtables {
				return map[int]unix.Errno{place: unix.ENOENT}, nil // there is no flowtable of this name
			}
		}
		return nil, nil
	}, modules, []Part{offloaded()})
	require.NoError(t, err)
	require.Empty(t, missing(checks), "the kernel has the module")
	checks, err = checksBy(lacks("flow_offload"), modules, []Part{offloaded()})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"module nft_flow_offload": "the fast path"}, missing(checks))
	checks, err = checksBy(func(messages []netlink.Message) (map[int]unix.Errno, error) {
		for place, m := range messages {
			if kindOf(m) == unix.NFT_MSG_NEWFLOWTABLE {
				return map[int]unix.Errno{place: unix.ENOENT}, nil
			}
		}
		return nil, nil
	}, modules, []Part{offloaded()})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"fast rules": "the fast path"}, missing(checks), "the module with flowtables of the family is another one")
	last := checks[len(checks)-1]
	require.Equal(t, "the kernel refuses a flowtable: no such file or directory", last.Found)
	require.Equal(t, "load nf_flow_table_inet", last.Fix())
}

func TestWithoutNFTablesNothingElseIsChecked(t *testing.T) {
	modules := preflight.Host{Root: t.TempDir(), Release: "6.1.0"}.Modules()
	gone := func([]netlink.Message) (map[int]unix.Errno, error) {
		return map[int]unix.Errno{0: unix.EOPNOTSUPP}, nil
	}
	checks, err := checksBy(gone, modules, []Part{rules("", tracked)})
	require.NoError(t, err)
	require.Len(t, checks, 1)
	require.Equal(t, map[string]string{"module nf_tables": ""}, missing(checks))
	require.Contains(t, checks[0].Command, "modprobe nf_tables")

	forbidden := func([]netlink.Message) (map[int]unix.Errno, error) { return map[int]unix.Errno{-1: unix.EPERM}, nil }
	checks, err = checksBy(forbidden, modules, []Part{rules("", tracked)})
	require.NoError(t, err)
	require.Len(t, checks, 1)
	require.Equal(t, dataplane.CheckUnknown, checks[0].State, "it is unknown")
	require.Contains(t, checks[0].Found, "NET_ADMIN")
}

// option returns the value of an option of this kernel's build, if it is known.
func option(t *testing.T, name string) string {
	file, err := os.Open("/proc/config.gz")
	if err != nil {
		t.Skip("this kernel does not say what it was built with")
	}
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	require.NoError(t, err)
	all, err := io.ReadAll(unpacked)
	require.NoError(t, err)
	for line := range strings.Lines(string(all)) {
		if value, is := strings.CutPrefix(strings.TrimSpace(line), "CONFIG_"+name+"="); is {
			return value
		}
	}
	return ""
}

// It tries an expression that this kernel has, and one that it lacks.
func TestThisKernelNamesMissingExpressionsAndKeepsNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	before := ruleset(t)
	checks, err := Checks(preflight.Host{}.Modules(), rules("queues", tracked, enqueued))
	require.NoError(t, err)
	require.NotContains(t, missing(checks), "module nft_ct")
	if option(t, "NFT_QUEUE") == "" {
		require.Equal(t, map[string]string{"module nft_queue": "queues"}, missing(checks))
		for _, c := range checks {
			if c.State == dataplane.CheckMissing {
				require.Equal(t, "this kernel is built without CONFIG_NFT_QUEUE", c.Found)
				require.Equal(t, "boot a kernel that is built with CONFIG_NFT_QUEUE", c.Advice)
			}
		}
	}
	require.Equal(t, before, ruleset(t))
}

// A container may not be allowed to create a network namespace. Then the batch is tried in the current namespace, here that of the test.
func TestChecksWorkWithoutANewNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	inNamespace(func() {
		before := ruleset(t)
		checks, err := checksBy(tryBatch, preflight.Host{}.Modules(), []Part{rules("", tracked, refused)})
		assert.NoError(t, err)
		assert.Empty(t, missing(checks))
		assert.Equal(t, before, ruleset(t), "nothing was committed")
	})
}

// ruleset returns the whole ruleset of this namespace.
func ruleset(t *testing.T) string {
	out, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").CombinedOutput()
	assert.NoError(t, err, string(out))
	return string(out)
}
