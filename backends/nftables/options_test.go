package nftables

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/nftables/probe"
)

func TestPreflightRefusesTheOptionsThatAStartRefuses(t *testing.T) {
	for option, refusal := range map[[2]string]string{
		{"flowtable", "maybe"}: `backend option flowtable="maybe": it is auto or off`,
		{"flowtable", "false"}: `backend option flowtable="false": it is auto or off`,
		{"flowtbl", "off"}:     `backend option "flowtbl": the nftables backend knows only "table" and "flowtable"`,
	} {
		config := dataplane.Config{StateDir: t.TempDir(), Options: map[string]string{option[0]: option[1]}}
		_, err := (&Backend{}).Preflight(t.Context(), config)
		require.EqualError(t, err, refusal)
		require.EqualError(t, (&Backend{}).Configure(t.Context(), config), refusal)
	}
}

func TestTheFastPathIsCheckedUnlessItIsOff(t *testing.T) {
	names := func(o options) (out []string) {
		for _, p := range o.parts() {
			out = append(out, p.Name)
		}
		return out
	}
	require.Contains(t, names(options{flowtable: flowtableAuto}), "rules for the fast path")
	require.NotContains(t, names(options{flowtable: flowtableOff}), "rules for the fast path")
}

func TestAModuleOfTheFastPathCostsOnlyTheFastPath(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it asks the kernel in a network namespace of its own")
	}
	checks, err := probe.Checks(preflight.Host{}.Modules(), options{flowtable: flowtableAuto}.parts()...)
	require.NoError(t, err)
	of := map[string]dataplane.Check{}
	for _, c := range checks {
		of[c.Subject] = c
	}
	require.Contains(t, of, "module nft_flow_offload", "%v", checks)
	require.Equal(t, "the fast path", of["module nft_flow_offload"].Costs)
	require.Equal(t, "the fast path", of["module nft_fib_ipv4"].Costs)
	if of["module nft_flow_offload"].State == dataplane.CheckOK && of["module nft_fib_ipv4"].State == dataplane.CheckOK {
		require.Contains(t, of, "rules for the fast path")
	}
	require.Equal(t, dataplane.CheckOK, of["rules of all tables"].State)
}

func TestTheAdviceForTheFastPathHasTheOptionThatTurnsItOff(t *testing.T) {
	missing := func(costs, advice string) dataplane.Check {
		return dataplane.Check{State: dataplane.CheckMissing, Costs: costs, Command: "modprobe it", Advice: advice}
	}
	checks := addFastPathAdvice([]dataplane.Check{missing(fastPathCosts, ""), missing(fastPathCosts, "boot another kernel"), missing("", "boot another kernel"), {State: dataplane.CheckOK, Costs: fastPathCosts}})
	require.Equal(t, "run: modprobe it     # or use --backend-option flowtable=off to do without", checks[0].Fix())
	require.Equal(t, "boot another kernel, or use --backend-option flowtable=off to do without", checks[1].Advice)
	require.Equal(t, "boot another kernel", checks[2].Advice)
	require.Empty(t, checks[3].Advice)
}
