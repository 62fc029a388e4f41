package repocheck

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/security.md tells which parser of bytes from outside is fuzzed by which target. Each target stands there, and each that stands there is.
func TestEachFuzzTargetIsInTheTableOfParsers(t *testing.T) {
	var targets []string
	declared := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		dir, failed := filepath.Rel(root, filepath.Dir(path))
		require.NoError(t, failed)
		for _, match := range declared.FindAllStringSubmatch(string(text), -1) {
			targets = append(targets, match[1]+" in "+filepath.ToSlash(dir))
		}
		return err
	}))
	text, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	require.NoError(t, err)
	var named []string
	tests := testsOf(t)
	for _, row := range regexp.MustCompile(`(?m)^\| [^|]+ \| [^|]+ \| ([^|]*(?:Fuzz|Test)[^|]*) \| [^|]+ \|$`).FindAllStringSubmatch(string(text), -1) {
		for _, target := range regexp.MustCompile(`Fuzz\w+ in [\w/]+`).FindAllString(row[1], -1) {
			named = append(named, target)
		}
		for _, test := range regexp.MustCompile(`\bTest\w+`).FindAllString(row[1], -1) {
			require.Contains(t, tests, test)
		}
	}
	require.ElementsMatch(t, targets, named)
}
