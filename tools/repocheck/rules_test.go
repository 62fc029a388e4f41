package repocheck

import (
	"go/ast"
	"go/parser"
	"go/token"
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

// A list that changes while the kernel dumps it may lack entries. The package dumps reads it again.
func TestEachListOfTheKernelIsReadAgainIfItChangesMeanwhile(t *testing.T) {
	found := 0
	goFiles(t, func(path string, file *ast.File, set *token.FileSet) {
		inside, err := filepath.Rel(root, path)
		require.NoError(t, err)
		dir, _, _ := strings.Cut(inside, "/")
		if strings.HasSuffix(path, "_test.go") || dir != "manager" && dir != "backends" {
			return
		}
		all, unsafe := netlinkLists(file)
		found += all
		for _, at := range unsafe {
			t.Errorf("%s: the list may be incomplete: read it in dumps.Read or dumps.Each", set.Position(at))
		}
	})
	require.Greater(t, found, 10)
}

func TestListsOfTheKernelThatAreReadOnceAreFound(t *testing.T) {
	for body, unsafe := range map[string]int{
		"netlink.LinkList()": 1, "netlink.RouteListFilteredIter(f, nil, 0, nil)": 1, "netlink.SocketDiagTCP(f)": 1, "read(netlink.LinkList)": 1,
		"dumps.Read(netlink.LinkList)": 0, "dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, f) })": 0, "dumps.Each(func() error { return netlink.RouteListFilteredIter(f, nil, 0, nil) })": 0,
		"netlink.LinkByName(name)": 0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "a.go", "package a\nfunc f() { "+body+" }", 0)
		require.NoError(t, err)
		_, at := netlinkLists(file)
		require.Len(t, at, unsafe, body)
	}
}

// netlinkLists counts the functions of the package netlink in a file that list something of the kernel, and returns those outside of dumps.Read and dumps.Each.
func netlinkLists(file *ast.File) (all int, unsafe []token.Pos) {
	lists := regexp.MustCompile(`^[A-Z]\w*List(Filtered|FilteredIter)?$|^SocketDiag`)
	var within []token.Pos // the ends of the calls of dumps that contain the node
	ast.Inspect(file, func(n ast.Node) bool {
		for n != nil && len(within) > 0 && n.Pos() >= within[len(within)-1] {
			within = within[:len(within)-1]
		}
		if call, is := n.(*ast.CallExpr); is && slices.ContainsFunc([]string{"Read", "Each"}, func(name string) bool { return isSelector(call.Fun, "dumps", name) }) {
			within = append(within, call.End())
		}
		if s, is := n.(*ast.SelectorExpr); is && lists.MatchString(s.Sel.Name) && isSelector(s, "netlink", s.Sel.Name) {
			all++
			if len(within) == 0 {
				unsafe = append(unsafe, s.Pos())
			}
		}
		return true
	})
	return all, unsafe
}

func isSelector(n ast.Expr, pkg, name string) bool {
	s, is := n.(*ast.SelectorExpr)
	if !is {
		return false
	}
	x, is := s.X.(*ast.Ident)
	return is && x.Name == pkg && s.Sel.Name == name
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
