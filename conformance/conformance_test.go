package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/broken"
	"kubelb.k8c.io/conformance/cases"
)

// goodBackends are the plugins that mutations break, by name. The one without a name is nftables, or the plugin that
// KUBELB_BACKEND names.
var goodBackends = map[string]Plugin{}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kubelb-conformance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"nftables", "envoy", "ebpf"} {
		build := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
		build.Dir = "../backends/" + name
		if output, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build backend %s: %v\n%s", name, err, output)
			return 1
		}
		goodBackends[name] = Plugin(filepath.Join(dir, "kubelb-backend-"+name))
	}
	if envoy, err := filepath.EvalSymlinks("../bin/envoy"); err == nil {
		if err := os.Symlink(envoy, filepath.Join(dir, "envoy")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	} else {
		delete(goodBackends, "envoy")
	}
	goodBackends[""] = goodBackends["nftables"]
	if named := os.Getenv("KUBELB_BACKEND"); named != "" {
		goodBackends[""] = Plugin(named)
	}
	return m.Run()
}

// Every case can fail: a broken backend does not pass the cases of its mutation. Cases of which only one may run at a time come first.
func TestBrokenBackendsAreCaught(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	alone := map[string]bool{}
	for _, c := range cases.All() {
		alone[c.Name] = c.Exclusive
	}
	for _, mutation := range broken.Mutations() {
		t.Run(mutation.Name, func(t *testing.T) {
			if !slices.ContainsFunc(mutation.CaughtBy, func(name string) bool { return alone[name] }) {
				t.Parallel()
			}
			requireCaught(t, mutation)
		})
	}
}

// requireCaught requires that each of the mutation's cases fails in one of the address families.
func requireCaught(t *testing.T, mutation broken.Mutation) {
	good, there := goodBackends[mutation.Breaks]
	if !there {
		t.Skipf("the programs of backend %s are missing: run 'make deps'", mutation.Breaks)
	}
	backend := broken.New(good, mutation)
	options := Options{Cases: mutation.CaughtBy, FirstFailure: true}
	if other, there := goodBackends["envoy"]; there {
		options.SwitchTo = append(options.SwitchTo, other)
	} else if slices.Contains(mutation.CaughtBy, "switching") {
		t.Skip("the programs of backend envoy, to switch to, are missing: run 'make deps'")
	}
	report, err := RunCases(t.Context(), backend, options)
	require.NoError(t, err)
	require.NoError(t, backend.Err())
	for _, name := range mutation.CaughtBy {
		require.Equal(t, Failed, report.outcomeOf(func(r Run) bool { return r.Case == name }), "case %s did not fail", name)
	}
	for _, r := range report.Runs {
		t.Logf("%s, %s: %s", r.Case, r.Family, r.Reason)
	}
}

func TestEveryCaseHasAMutationThatItCatches(t *testing.T) {
	var caught []string
	for _, mutation := range broken.Mutations() {
		caught = append(caught, mutation.CaughtBy[0])
	}
	for _, name := range Names() {
		require.True(t, slices.Contains(caught, name), "no mutation shows that case %s can fail", name)
	}
}
