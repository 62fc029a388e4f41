package results_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/results"
)

type result struct{ Round int }

func TestResultsAreReadInTheOrderInWhichTheyWereAdded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "results.json")
	all, err := results.Read[result](path)
	require.NoError(t, err)
	require.Empty(t, all)
	for round := range 3 {
		require.NoError(t, results.Add(path, result{round}))
	}
	all, err = results.Read[result](path)
	require.NoError(t, err)
	require.Equal(t, []result{{0}, {1}, {2}}, all)
}

func TestATruncatedResultIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	require.NoError(t, os.WriteFile(path, []byte("{\"Round\":1}\n{\"Rou"), 0o600))
	_, err := results.Read[result](path)
	require.ErrorContains(t, err, path+", result 2: unexpected EOF")
}

func TestWithoutAPathNothingIsStored(t *testing.T) {
	require.NoError(t, results.Add("", result{1}))
	all, err := results.Read[result]("")
	require.NoError(t, err)
	require.Empty(t, all)
}
