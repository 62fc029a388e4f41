package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEachKindOfFaultIsFoundOnceAndCleanUpIsNone(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "lint")
	output, err := exec.Command("go", "build", "-o", tool, ".").CombinedOutput()
	require.NoError(t, err, "%s", output)
	output, err = exec.Command("go", "vet", "-vettool="+tool, "./testdata/faulty").CombinedOutput()
	require.Error(t, err)
	for _, finding := range []string{
		"faulty.go:8:11: the error of os.Setenv is not checked",
		"faulty.go:9:2: ineffectual assignment to err",
		"faulty.go:9:2: this value of err is never used",
		"faulty.go:11:12: unnecessary assignment to the blank identifier",
		"faulty.go:18:6: func nobodyCallsIt is not used",
	} {
		require.Contains(t, string(output), finding)
	}
	require.NotContains(t, string(output), "os.Remove")
}
