package repocheck

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// The API server evaluates the rules for each write, also of a status. A rule that compared each of 256 ports with all took a second.
func TestNoRuleOfTheAPIHasNestedLoops(t *testing.T) {
	rules := 0
	for _, pattern := range []string{"api/crds/*.yaml", "api/policies/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		for _, file := range files {
			for _, rule := range rulesOf(t, file) {
				rules++
				require.Empty(t, nestedLoops(rule), "%s: %s", filepath.Base(file), rule)
			}
		}
	}
	require.Greater(t, rules, 50)
}

// Of a path with [*] the API server prints only the first value.
func TestNoColumnOfATablePrintsTheFirstEntryOfAList(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "api/crds/*.yaml"))
	require.NoError(t, err)
	columns := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, path := range regexp.MustCompile(`(?m)^ *- jsonPath: (.*)$`).FindAllStringSubmatch(string(text), -1) {
			columns++
			require.NotContains(t, path[1], "[*]", filepath.Base(file))
		}
	}
	require.Greater(t, columns, 20)
}

// CONTRIBUTING.md has a table of the files of a dataplane.
func TestFilesOfDataplanesHaveTheSameNames(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	require.NoError(t, err)
	rows := regexp.MustCompile("(?m)^\\| `([a-z]+\\.go)` \\|[^|]+\\| (?:yes|no) \\| ([a-z, ]+) \\|$").FindAllStringSubmatch(string(text), -1)
	require.Len(t, rows, 8)
	for _, row := range rows {
		for _, backend := range []string{"nftables", "ebpf", "envoy"} {
			_, err := os.Stat(filepath.Join(root, "backends", backend, row[1]))
			require.Equal(t, slices.Contains(strings.Split(row[2], ", "), backend), err == nil, "%s of %s", row[1], backend)
		}
	}
}

func TestNestedLoopsAreFound(t *testing.T) {
	require.Equal(t, []string{"self.ports"}, nestedLoops("self.ports.all(p, self.ports.exists_one(q, q.port == p.port))"))
	require.Equal(t, []string{"self"}, nestedLoops("(self.all(a, a.b.size() > 0 && !self.exists(b, a == b)))"))
	require.Empty(t, nestedLoops("self.endpoints.all(e, e.addresses.map(a, size(a.hostname)).sum() < 3) && self.ports.all(p, p > 0)"))
}

// rulesOf returns the CEL expressions in a file.
func rulesOf(t *testing.T, file string) (rules []string) {
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	for decoder := yaml.NewDecoder(strings.NewReader(string(text))); ; {
		var document yaml.Node
		if decoder.Decode(&document) != nil {
			return rules
		}
		rules = append(rules, expressionsIn(&document)...)
	}
}

func expressionsIn(n *yaml.Node) (found []string) {
	for i, child := range n.Content {
		if key := n.Kind == yaml.MappingNode && i%2 == 1; key && child.Kind == yaml.ScalarNode && slices.Contains([]string{"rule", "expression"}, n.Content[i-1].Value) {
			found = append(found, child.Value)
		}
		found = append(found, expressionsIn(child)...)
	}
	return found
}

// loop matches the CEL macros that evaluate an expression for each entry of a list. The second group is the name of the entry.
var loop = regexp.MustCompile(`([A-Za-z_][\w.?]*)\.(?:all|exists|exists_one|map|filter)\((\w+),`)

// nestedLoops returns the lists that a rule iterates over inside a loop over another list that they are no part of.
func nestedLoops(rule string) (found []string) {
	type openLoop struct {
		variable string
		end      int
	}
	var enclosing []openLoop
	for _, at := range loop.FindAllStringSubmatchIndex(rule, -1) {
		list, variable := rule[at[2]:at[3]], rule[at[4]:at[5]]
		enclosing = slices.DeleteFunc(enclosing, func(o openLoop) bool { return o.end < at[0] })
		name, _, _ := strings.Cut(list, ".")
		if len(enclosing) > 0 && !slices.ContainsFunc(enclosing, func(o openLoop) bool { return o.variable == name }) {
			found = append(found, list)
		}
		enclosing = append(enclosing, openLoop{variable, closing(rule, at[4])})
	}
	return found
}

// closing returns the index of the parenthesis that closes the one around the position.
func closing(text string, from int) int {
	depth := 1
	for i := from; i < len(text); i++ {
		switch text[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(text)
}
