package repocheck

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A table in docs/observe.md says how old each reported state may be, and which test shows it. It must name each condition, metric, column and line.
func TestTheTableOfAgesNamesEachReportedState(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/observe.md"))
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## How old is what it says?\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	named := map[string]bool{}
	tests := testsOf(t)
	rows := 0
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		if len(cells) != 5 || strings.HasPrefix(line, "| what") || strings.HasPrefix(line, "| ---") {
			continue
		}
		rows++
		for _, match := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[0], -1) {
			named[match[1]] = true
		}
		shown := regexp.MustCompile(`\b(?:Test|Fuzz)\w+`).FindAllString(cells[4], -1)
		for _, name := range shown {
			require.NotEmpty(t, tests[name], "%s: there is no test %s", cells[0], name)
		}
		require.True(t, len(shown) > 0 || strings.Contains(cells[4], "Not shown: "), "%s: no test shows it", cells[0])
	}
	require.Greater(t, rows, 10)
	files := sources(t)
	reported := map[string][]string{"condition": conditionTypes(t, files), "metric": metricNames(files), "column": columns(files), "line of explain or trace": lines(files)}
	for kind, names := range reported {
		require.NotEmpty(t, names, kind)
		for _, name := range names {
			require.True(t, named[name], "the %s %q is in no row of the table", kind, name)
		}
	}
}

// source is a source file, with its path from the root.
type source struct {
	path string
	file *ast.File
}

// sources parses the files of all code that reports state.
func sources(t *testing.T) (all []source) {
	t.Helper()
	for _, dir := range []string{"api/v1alpha1", "backends/dataplane", "manager", "ccm", "tools/inspect", "tools/cmd/kubelb"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			rel, _ := filepath.Rel(root, path)
			all = append(all, source{filepath.ToSlash(rel), file})
			return err
		}))
	}
	return all
}

// literal returns the value of a string literal.
func literal(e ast.Expr) (string, bool) {
	l, is := e.(*ast.BasicLit)
	if !is || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}

// conditionTypes returns the constants for condition types. It fails if code makes a condition with a literal type: then there are no other types.
func conditionTypes(t *testing.T, files []source) (types []string) {
	t.Helper()
	const group, prefix = "Group", "Host"
	for _, s := range files {
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if i >= len(n.Values) {
						continue
					}
					value, is := literal(n.Values[i])
					ofAPI := s.path == "api/v1alpha1/names.go" && (strings.HasPrefix(name.Name, "Condition") || name.Name == "ServiceCondition")
					if is && ofAPI && name.Name != "ConditionHostPrefix" {
						types = append(types, value)
					}
					if is && s.path == "backends/dataplane/check.go" && strings.HasPrefix(name.Name, group) {
						types = append(types, prefix+value)
					}
				}
			case *ast.CompositeLit:
				if selected, is := n.Type.(*ast.SelectorExpr); is && selected.Sel.Name == "Condition" {
					_, quoted := literal(field(n, "Type"))
					require.False(t, quoted, "%s: give the type of each condition a constant in api/v1alpha1/names.go", s.path)
				}
			}
			return true
		})
	}
	return types
}

// field returns the value of a field of a composite literal, nil if it is not set.
func field(literal *ast.CompositeLit, name string) ast.Expr {
	for _, e := range literal.Elts {
		if pair, is := e.(*ast.KeyValueExpr); is {
			if key, is := pair.Key.(*ast.Ident); is && key.Name == name {
				return pair.Value
			}
		}
	}
	return nil
}

// metricNames returns the names of all metrics. A name is a literal in the options of Prometheus, or a prefix in a function literal that makes the options
// plus the argument of a call of that function.
func metricNames(files []source) (names []string) {
	for _, s := range files {
		prefixes := map[string]string{} // by function
		ast.Inspect(s.file, func(n ast.Node) bool {
			assigned, is := n.(*ast.AssignStmt)
			if !is || len(assigned.Rhs) != 1 {
				return true
			}
			made, is := assigned.Rhs[0].(*ast.FuncLit)
			if !is {
				return true
			}
			function, _ := assigned.Lhs[0].(*ast.Ident)
			for _, name := range optionNames(made) {
				if _, quoted := literal(name); !quoted && function != nil {
					prefixes[function.Name] = prefixOf(name)
				}
			}
			return true
		})
		for _, name := range optionNames(s.file) {
			if text, quoted := literal(name); quoted {
				names = append(names, text)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if call, is := n.(*ast.CallExpr); is && len(call.Args) > 0 {
				if function, is := call.Fun.(*ast.Ident); is {
					prefix, makes := prefixes[function.Name]
					if name, quoted := literal(call.Args[0]); makes && quoted {
						names = append(names, prefix+name)
					}
				}
			}
			return true
		})
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// optionNames returns the field Name of each options literal of Prometheus.
func optionNames(in ast.Node) (names []ast.Expr) {
	ast.Inspect(in, func(n ast.Node) bool {
		if options, is := n.(*ast.CompositeLit); is {
			if selected, is := options.Type.(*ast.SelectorExpr); is && strings.HasSuffix(selected.Sel.Name, "Opts") {
				if name := field(options, "Name"); name != nil {
					names = append(names, name)
				}
			}
		}
		return true
	})
	return names
}

// prefixOf returns the first operand of a concatenation if it is a literal.
func prefixOf(e ast.Expr) string {
	sum, is := e.(*ast.BinaryExpr)
	if !is {
		return ""
	}
	text, _ := literal(sum.X)
	return text
}

// columns returns the column headings of kubelb's tables.
func columns(files []source) (names []string) {
	heading := regexp.MustCompile(`^\n?[A-Z0-9/ -]+(\t[A-Z0-9/ -]+)+$`)
	for _, s := range files {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if e, is := n.(*ast.BasicLit); is {
				if text, _ := literal(e); heading.MatchString(text) {
					names = append(names, strings.Split(strings.TrimSpace(text), "\t")...)
				}
			}
			return true
		})
	}
	return names
}

// lines returns the names of the steps of kubelb explain and of the hops of kubelb trace.
func lines(files []source) (names []string) {
	for _, s := range files {
		for _, d := range s.file.Decls {
			function, is := d.(*ast.FuncDecl)
			if !is || s.path != "tools/inspect/explain.go" && s.path != "tools/inspect/trace.go" {
				continue
			}
			ast.Inspect(function, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if n.Type == nil && len(n.Elts) == 2 && function.Name.Name == "Explain" {
						if name, quoted := literal(n.Elts[0]); quoted {
							names = append(names, name)
						}
					}
				case *ast.CallExpr:
					if called, is := n.Fun.(*ast.Ident); is && called.Name == "line" {
						if name, quoted := literal(n.Args[0]); quoted {
							names = append(names, name)
						}
					}
				}
				return true
			})
		}
	}
	return names
}
