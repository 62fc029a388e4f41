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
)

// goodBackend is the binary that is broken to test the suite: what KUBELB_BACKEND names, or else the nftables backend built
// from source.
var goodBackend Plugin

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if named := os.Getenv("KUBELB_BACKEND"); named != "" {
		goodBackend = Plugin(named)
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "kubelb-conformance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	goodBackend = Plugin(filepath.Join(dir, "backend"))
	build := exec.Command("go", "build", "-o", string(goodBackend), "./cmd/kubelb-backend-nftables")
	build.Dir = "../backends/nftables"
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build backend: %v\n%s", err, output)
		return 1
	}
	return m.Run()
}

// Every case can fail: a backend that is broken in the way that the case looks for does not pass it.
func TestBrokenBackendsAreCaught(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	for _, mutation := range broken.Mutations() {
		t.Run(mutation.Name, func(t *testing.T) {
			backend := broken.New(goodBackend, mutation)
			report, err := Judge(t.Context(), backend, Options{Cases: mutation.CaughtBy})
			require.NoError(t, err)
			require.NoError(t, backend.Err())
			for _, name := range mutation.CaughtBy {
				require.Equal(t, Failed, report.outcomeOf(func(r Run) bool { return r.Case == name }), "case %s has not noticed", name)
			}
			t.Logf("caught by %v", mutation.CaughtBy)
		})
	}
}

func TestEveryCaseHasABackendThatItAloneIsFor(t *testing.T) {
	var caught []string
	for _, mutation := range broken.Mutations() {
		caught = append(caught, mutation.CaughtBy[0])
	}
	for _, name := range Names() {
		require.True(t, slices.Contains(caught, name), "no broken backend shows that case %s can fail", name)
	}
}
