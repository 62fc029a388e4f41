package repocheck

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A table in docs/security.md says which fuzz target tests which parser of untrusted bytes. It must name exactly the targets that exist.
func TestEachFuzzTargetIsInTheTableOfParsers(t *testing.T) {
	var targets []string
	tests := testsOf(t)
	for name, folders := range tests {
		for _, folder := range folders {
			if strings.HasPrefix(name, "Fuzz") {
				targets = append(targets, name+" in "+folder)
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	require.NoError(t, err)
	var named []string
	for _, row := range regexp.MustCompile(`(?m)^\| [^|]+ \| [^|]+ \| ([^|]*(?:Fuzz|Test)[^|]*) \| [^|]+ \|$`).FindAllStringSubmatch(string(text), -1) {
		named = append(named, regexp.MustCompile(`Fuzz\w+ in [\w/]+`).FindAllString(row[1], -1)...)
		for _, test := range regexp.MustCompile(`\bTest\w+`).FindAllString(row[1], -1) {
			require.Contains(t, tests, test)
		}
	}
	require.ElementsMatch(t, targets, named)
}
