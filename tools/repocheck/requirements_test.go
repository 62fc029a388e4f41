package repocheck

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// requirementIDs are the requirements that docs/requirements.md has to name, each once.
func requirementIDs() (ids []string) {
	for _, span := range []struct {
		letter, form string
		from, to     int
	}{
		{"S", "%s%02d", 1, 24}, {"S", "%s%02d", 30, 36}, {"S", "%s%02d", 40, 48}, {"S", "%s%02d", 50, 57}, {"S", "%s%02d", 60, 66},
		{"S", "%s%02d", 70, 76}, {"S", "%s%02d", 80, 89}, {"S", "%s%02d", 90, 99}, {"R", "%s%d", 1, 18},
		{"T", "%s%d", 1, 35},
	} {
		for n := span.from; n <= span.to; n++ {
			ids = append(ids, fmt.Sprintf(span.form, span.letter, n))
		}
	}
	return ids
}

// Each requirement names existing tests, cases or files that show it, or says what is not shown.
func TestEachRequirementIsShownOrSaysWhatIsMissing(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/requirements.md"))
	require.NoError(t, err)
	tests, cases := testsOf(t), casesOf(t)
	var found []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([SRT]\d+) \| [^|]+ \| ([^|]+) \|$`).FindAllStringSubmatch(string(text), -1) {
		id := row[1]
		found = append(found, id)
		shown, missing, _ := strings.Cut(row[2], "Not shown: ")
		shown = strings.TrimSuffix(strings.TrimSpace(shown), ".")
		require.NotEmpty(t, shown+missing, id)
		for _, by := range strings.FieldsFunc(shown, func(r rune) bool { return r == ',' }) {
			by, _, _ = strings.Cut(strings.TrimSpace(by), ":")
			kind, name, _ := strings.Cut(by, " ")
			switch {
			case kind == "case":
				require.Contains(t, cases, name, "%s: there is no case %s", id, name)
			case kind == "input":
				require.FileExists(t, filepath.Join(root, "tools/corecheck/corpus", name+".expected"), id)
			case strings.HasPrefix(kind, "Test"), strings.HasPrefix(kind, "Fuzz"):
				require.Contains(t, tests, kind, "%s: there is no test %s", id, kind)
			default:
				require.FileExists(t, filepath.Join(root, by), id)
			}
		}
	}
	require.Equal(t, requirementIDs(), found)
}

// testsOf returns the names of all tests of the repository, with the folders that have a test of that name.
func testsOf(t *testing.T) map[string][]string {
	folders := map[string][]string{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		dir, failed := filepath.Rel(root, filepath.Dir(path))
		require.NoError(t, failed)
		for _, match := range declared.FindAllStringSubmatch(string(text), -1) {
			folders[match[1]] = append(folders[match[1]], filepath.ToSlash(dir))
		}
		return err
	}))
	return folders
}

// casesOf returns the names of the conformance suite's cases.
func casesOf(t *testing.T) map[string]bool {
	files, err := filepath.Glob(filepath.Join(root, "conformance/cases/*.go"))
	require.NoError(t, err)
	names := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, match := range regexp.MustCompile(`Name:\s+"([a-z-]+)"`).FindAllStringSubmatch(string(text), -1) {
			names[match[1]] = true
		}
	}
	require.NotEmpty(t, names)
	return names
}

func TestEachBoundIsShownByExistingTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/limits.md"))
	require.NoError(t, err)
	tests, cases := testsOf(t), casesOf(t)
	rows := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		if len(cells) != 4 || strings.HasPrefix(line, "| resource") || strings.HasPrefix(line, "| ---") {
			continue
		}
		rows++
		shown := cells[3]
		named := regexp.MustCompile(`\bTest\w+`).FindAllString(shown, -1)
		for _, name := range named {
			require.Contains(t, tests, name, "%s: there is no test %s", cells[0], name)
		}
		for _, match := range regexp.MustCompile(`case ([a-z-]+)`).FindAllStringSubmatch(shown, -1) {
			require.Contains(t, cases, match[1], "%s: there is no case %s", cells[0], match[1])
			named = append(named, match[1])
		}
		require.True(t, len(named) > 0 || strings.Contains(shown, "not "), "%s: no test shows it", cells[0])
	}
	require.Greater(t, rows, 15)
}
