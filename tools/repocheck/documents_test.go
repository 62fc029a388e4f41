package repocheck

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// documents returns the text of each Markdown file of the repository, by its path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	walk(t, func(path string) {
		if strings.HasSuffix(path, ".md") {
			texts[path] = read(t, path)
		}
	})
	require.Greater(t, len(texts), 15)
	return texts
}

// walk calls f with the path from the root of each file of the repository, except for outputs of builds and tests.
func walk(t *testing.T, f func(path string)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", "bin", "testdata"}, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		path, err = filepath.Rel(root, path)
		f(filepath.ToSlash(path))
		return err
	}))
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	require.NoError(t, err)
	return string(text)
}

// rowsOf returns the rows, as cells, of all tables in a document that have this heading.
func rowsOf(text string, heading ...string) (rows [][]string) {
	inside := false
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			inside = false
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case slices.Equal(cells, heading):
			inside = true
		case inside && cells[0] != "---":
			rows = append(rows, cells)
		}
	}
	return rows
}

func TestEachLinkOfADocumentHasATarget(t *testing.T) {
	texts := documents(t)
	links := 0
	for from, text := range texts {
		for _, match := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(withoutCode(text), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			links++
			path, anchor, _ := strings.Cut(match[1], "#")
			to := from
			if path != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(from), path))
				_, err := os.Stat(filepath.Join(root, to))
				require.NoError(t, err, "%s: a link to %s", from, match[1])
			}
			if anchor != "" {
				require.Contains(t, anchorsOf(texts[to]), anchor, "%s: a link to %s", from, match[1])
			}
		}
	}
	require.Greater(t, links, 100)
}

// withoutCode removes blocks of code: their brackets are no links.
func withoutCode(text string) string {
	text = regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(text, "")
	return regexp.MustCompile(`(?m)^    .*$`).ReplaceAllString(text, "")
}

// anchorsOf returns the anchors that GitHub makes of a document's headings.
func anchorsOf(text string) (anchors []string) {
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		plain := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		anchors = append(anchors, strings.ReplaceAll(plain, " ", "-"))
	}
	return anchors
}

func TestEachMakeTargetInADocumentExists(t *testing.T) {
	makefile := read(t, "Makefile")
	named := regexp.MustCompile("(?m)(?:`|^    +)make ([a-z][a-z0-9-]*)")
	for path, text := range documents(t) {
		for _, match := range named.FindAllStringSubmatch(text, -1) {
			require.Regexp(t, `(?m)^`+match[1]+`:`, makefile, "%s: make %s", path, match[1])
		}
	}
}

// People find targets by 'make help'.
func TestMakeHelpShowsEachTargetInOneGroup(t *testing.T) {
	makefile := read(t, "Makefile")
	var documented, grouped []string
	for _, match := range regexp.MustCompile(`(?m)^([a-z0-9-]+):.*## `).FindAllStringSubmatch(makefile, -1) {
		documented = append(documented, match[1])
	}
	for _, match := range regexp.MustCompile(`(?m)^HELP_[a-z]+ +:= (.*)$`).FindAllStringSubmatch(makefile, -1) {
		grouped = append(grouped, strings.Fields(match[1])...)
	}
	require.ElementsMatch(t, documented, grouped)
}

func TestTheArchitectureNamesEachPackage(t *testing.T) {
	var packages, named []string
	walk(t, func(path string) {
		if dir := filepath.ToSlash(filepath.Dir(path)); strings.HasSuffix(path, ".go") && !slices.Contains(packages, dir) {
			packages = append(packages, dir)
		}
	})
	link := regexp.MustCompile(`^\[([a-z0-9/-]+)\]\(([a-z0-9/-]+)\)$`)
	for _, row := range rowsOf(read(t, "ARCHITECTURE.md"), "package", "job") {
		match := link.FindStringSubmatch(row[0])
		require.NotNil(t, match, row[0])
		require.Equal(t, match[1], match[2])
		require.NotEmpty(t, row[1], row[0])
		named = append(named, match[1])
	}
	require.ElementsMatch(t, packages, named)
}

func TestTheArchitectureNamesTheAllowedImports(t *testing.T) {
	documented := map[string][]string{}
	for _, row := range rowsOf(read(t, "ARCHITECTURE.md"), "module", "may import") {
		allowed := []string{}
		for _, match := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			allowed = append(allowed, match[1])
		}
		documented[strings.Trim(row[0], "`")] = allowed
	}
	checked := map[string][]string{}
	for module, allowed := range allowedImports {
		checked[module] = []string{}
		for _, prefix := range allowed {
			checked[module] = append(checked[module], strings.TrimSuffix(prefix, "/"))
		}
	}
	require.Equal(t, checked, documented)
}

func TestTheGlossaryHasEachWordOnce(t *testing.T) {
	words := map[string]bool{}
	for _, row := range rowsOf(read(t, "GLOSSARY.md"), "word", "meaning", "not") {
		require.Len(t, row, 3, row)
		require.False(t, words[row[0]], "two meanings of %q", row[0])
		words[row[0]] = true
		require.NotEmpty(t, row[1], row[0])
		require.NotEmpty(t, row[2], "%q: name a word that is not used for it", row[0])
	}
	require.Greater(t, len(words), 50)
}
