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

// The API server evaluates these for each write, and again for each write of a status: a second for 256 ports where each was compared with all.
func TestNoRuleOfTheAPILooksThroughAListForEachEntryOfAnother(t *testing.T) {
	rules := 0
	for _, pattern := range []string{"api/crds/*.yaml", "api/policies/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		for _, file := range files {
			for _, rule := range rulesOf(t, file) {
				rules++
				require.Empty(t, loopsInLoops(rule), "%s: %s", filepath.Base(file), rule)
			}
		}
	}
	require.Greater(t, rules, 50)
}

// A column has one value: of a path with [*] the API server prints the first.
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

func TestLoopsInLoopsAreFound(t *testing.T) {
	require.Equal(t, []string{"self.ports"}, loopsInLoops("self.ports.all(p, self.ports.exists_one(q, q.port == p.port))"))
	require.Equal(t, []string{"self"}, loopsInLoops("(self.all(a, a.b.size() > 0 && !self.exists(b, a == b)))"))
	require.Empty(t, loopsInLoops("self.endpoints.all(e, e.addresses.map(a, size(a.hostname)).sum() < 3) && self.ports.all(p, p > 0)"))
}

// rulesOf are the CEL expressions in a file.
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

// loop is a macro of CEL that evaluates an expression for each entry of a list, with a name for the entry.
var loop = regexp.MustCompile(`([A-Za-z_][\w.?]*)\.(?:all|exists|exists_one|map|filter)\((\w+),`)

// loopsInLoops are the lists that are looked through for each entry of a list that they are no part of.
func loopsInLoops(rule string) (found []string) {
	type open struct {
		variable string
		end      int
	}
	var around []open
	for _, at := range loop.FindAllStringSubmatchIndex(rule, -1) {
		list, variable := rule[at[2]:at[3]], rule[at[4]:at[5]]
		around = slices.DeleteFunc(around, func(o open) bool { return o.end < at[0] })
		name, _, _ := strings.Cut(list, ".")
		if len(around) > 0 && !slices.ContainsFunc(around, func(o open) bool { return o.variable == name }) {
			found = append(found, list)
		}
		around = append(around, open{variable, closing(rule, at[4])})
	}
	return found
}

// closing is where the parenthesis closes in which the place is.
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
