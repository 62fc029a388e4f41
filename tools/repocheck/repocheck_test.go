package repocheck

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

const modulePrefix = "kubelb.k8c.io/"

// allowedImports are, by module, the prefixes of the packages that it may import from other modules of the repository.
var allowedImports = map[string][]string{
	"api":               {},
	"core":              {},
	"backends":          {"core/model"},
	"backends/envoy":    {"core/", "backends/"},
	"backends/example":  {"core/", "backends/"},
	"backends/ebpf":     {"core/", "backends/"},
	"backends/nftables": {"core/", "backends/"},
	"ccm":               {"api/", "core/"},
	"manager":           {"api/", "core/", "backends/plugin", "backends/dataplane", "backends/statefile"},
	"conformance":       {"core/model", "core/maglev", "backends/dataplane", "backends/plugin"},
	"tools":             {"api/", "core/", "backends/dataplane", "backends/plugin", "ccm", "manager", "conformance"},
}

// allowedInTests are further prefixes for tests.
var allowedInTests = map[string][]string{
	"backends/envoy":    {"conformance"},
	"backends/ebpf":     {"conformance"},
	"backends/example":  {"conformance"},
	"backends/nftables": {"conformance"},
}

// outsideWorkspace are modules that build third-party programs.
var outsideWorkspace = []string{"tools/dependencies", "tools/generate", "tools/helm", "tools/kubernetes", "tools/lint"}

type module struct {
	Go      string
	Module  struct{ Path string }
	Require []struct{ Path, Version string }
}

func readModule(t *testing.T, dir string) module {
	t.Helper()
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = filepath.Join(root, dir)
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	require.NoError(t, err)
	var m module
	require.NoError(t, json.Unmarshal(out, &m))
	return m
}

// moduleDirs finds every go.mod.
func moduleDirs(t *testing.T) []string {
	t.Helper()
	var dirs []string
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "go.mod" {
			rel, relErr := filepath.Rel(root, filepath.Dir(path))
			dirs = append(dirs, filepath.ToSlash(rel))
			return relErr
		}
		return err
	}))
	return dirs
}

func TestEachModuleIsInTheWorkspaceAndInTheTable(t *testing.T) {
	work, err := os.ReadFile(filepath.Join(root, "go.work"))
	require.NoError(t, err)
	for _, dir := range moduleDirs(t) {
		inside := strings.Contains(string(work), "\t./"+dir+"\n")
		require.Equal(t, !slices.Contains(outsideWorkspace, dir), inside, "%s in go.work", dir)
		if inside {
			require.Contains(t, allowedImports, dir, "add %s to the table of allowed imports", dir)
		}
		require.Equal(t, modulePrefix+dir, readModule(t, dir).Module.Path)
	}
}

func TestModulesHaveEqualGoLinesAndVersions(t *testing.T) {
	versions, from := map[string]string{}, map[string]string{}
	for _, dir := range moduleDirs(t) {
		m := readModule(t, dir)
		require.Equal(t, "1.26.0", m.Go, "the go line of %s", dir)
		if slices.Contains(outsideWorkspace, dir) {
			continue
		}
		for _, r := range m.Require {
			if strings.HasPrefix(r.Path, modulePrefix) {
				require.Equal(t, "v0.0.0", r.Version, "%s requires %s", dir, r.Path)
				continue
			}
			if known, ok := versions[r.Path]; ok {
				require.Equal(t, known, r.Version, "%s: %s requires another version than %s", r.Path, dir, from[r.Path])
			}
			versions[r.Path], from[r.Path] = r.Version, dir
		}
	}
}

// Tests build Kubernetes with the same compile cache: equal versions save minutes.
func TestVersionsEqualThoseOfTheKubernetesThatTestsRun(t *testing.T) {
	kubernetes := map[string]string{}
	for _, r := range readModule(t, "tools/kubernetes").Require {
		kubernetes[r.Path] = r.Version
	}
	for _, path := range []string{"k8s.io/api", "k8s.io/client-go"} {
		for _, dir := range []string{"ccm", "manager"} {
			for _, r := range readModule(t, dir).Require {
				if r.Path == path {
					require.Equal(t, kubernetes[path], r.Version, "%s in %s", path, dir)
				}
			}
		}
	}
}

func TestCoreHasNoThirdPartyRequirement(t *testing.T) {
	require.Empty(t, readModule(t, "core").Require)
	require.NoFileExists(t, filepath.Join(root, "core/go.sum"))
}

func TestModulesImportOnlyAllowedPackages(t *testing.T) {
	for dir, allowed := range allowedImports {
		cmd := exec.Command("go", "list", "-e", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}{{"\n"}}{{.ImportPath}}.test{{range .TestImports}} {{.}}{{end}}{{range .XTestImports}} {{.}}{{end}}`, "./...")
		cmd.Dir = filepath.Join(root, dir)
		cmd.Env = append(os.Environ(), "GOWORK=off")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		for line := range strings.Lines(string(out)) {
			fields, allowed := strings.Fields(line), allowed
			if strings.HasSuffix(fields[0], ".test") {
				allowed = slices.Concat(allowed, allowedInTests[dir])
			}
			for _, imported := range fields[1:] {
				path, inRepository := strings.CutPrefix(imported, modulePrefix)
				if !inRepository || path == dir || strings.HasPrefix(path, dir+"/") {
					if dir == "core" && strings.Contains(strings.Split(imported, "/")[0], ".") && !inRepository {
						t.Errorf("core may import only the standard library: %s imports %s", fields[0], imported)
					}
					continue
				}
				if !slices.ContainsFunc(allowed, func(prefix string) bool {
					return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
				}) {
					t.Errorf("%s imports %s, which the table of allowed imports does not have", fields[0], imported)
				}
			}
		}
	}
}

// goFiles calls f for each Go file that is not generated.
func goFiles(t *testing.T, f func(path string, file *ast.File, set *token.FileSet)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") || strings.HasPrefix(d.Name(), "zz_generated") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err == nil {
			f(path, file, set)
		}
		return err
	}))
}

func TestEveryPackageHasOneDocComment(t *testing.T) {
	docs := map[string]int{}
	goFiles(t, func(path string, file *ast.File, _ *token.FileSet) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		dir := filepath.Dir(path)
		docs[dir] += 0
		if file.Doc != nil {
			docs[dir]++
			wanted := "Package " + file.Name.Name
			if file.Name.Name == "main" {
				wanted = "Command "
			}
			require.True(t, strings.HasPrefix(file.Doc.Text(), wanted), "%s: the comment must begin with %q", path, wanted)
		}
	})
	for dir, n := range docs {
		require.Equal(t, 1, n, "package comments in %s", dir)
	}
}

func TestHouseRules(t *testing.T) {
	const longestFunction, longestFile = 100, 650
	goFiles(t, func(path string, file *ast.File, set *token.FileSet) {
		require.NotContains(t, []string{"util", "utils", "common", "helper", "helpers", "misc"}, file.Name.Name, path)
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		if lines := set.Position(file.End()).Line; lines > longestFile {
			t.Errorf("%s has %d lines, more than %d: can it be split?", path, lines, longestFile)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s has an init function", path)
			}
			if lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line; lines >= longestFunction {
				t.Errorf("%s: %s has %d lines", path, f.Name.Name, lines)
			}
		}
	})
}
