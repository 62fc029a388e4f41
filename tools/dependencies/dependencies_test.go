package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOnlyVulnerabilitiesWithFunctionsInTheProgramCount(t *testing.T) {
	// The format of govulncheck: a finding with a module only, one with a package, and two with functions.
	output := `{"config":{"protocol_version":"v1.0.0"}}
{"osv":{"id":"GO-2026-0001","summary":"Trouble in a"}}
{"osv":{"id":"GO-2026-0002","summary":"Trouble in b"}}
{"finding":{"osv":"GO-2026-0002","fixed_version":"v1.3.0","trace":[{"module":"example.com/b","version":"v1.2.0"}]}}
{"finding":{"osv":"GO-2026-0002","fixed_version":"v1.3.0","trace":[{"module":"example.com/b","version":"v1.2.0","package":"example.com/b/p"}]}}
{"finding":{"osv":"GO-2026-0001","trace":[{"module":"example.com/a","version":"v1.0.0","package":"example.com/a","function":"Serve","receiver":"Server"}]}}
{"finding":{"osv":"GO-2026-0001","trace":[{"module":"example.com/a","version":"v1.0.0","package":"example.com/a","function":"Dial"}]}}
`
	found, err := findings(strings.NewReader(output))
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "GO-2026-0001: Trouble in a: example.com/a@v1.0.0, fixed in no version yet (example.com/a.Server.Serve, example.com/a.Dial)", found[0].String())
	_, err = findings(strings.NewReader("usage: govulncheck"))
	require.Error(t, err)
}

func TestTheModulesAreReadFromTheProgram(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	modules, err := modulesOf([]string{self, self})
	require.NoError(t, err)
	var paths []string
	for _, m := range modules {
		paths = append(paths, m.path)
	}
	require.Contains(t, paths, "github.com/google/licensecheck")
	require.NotContains(t, strings.Join(paths, " "), ownPrefix)
	require.Len(t, paths, len(modules))
	_, err = modulesOf(nil)
	require.EqualError(t, err, "name the programs")
	_, err = modulesOf([]string{"main.go"})
	require.ErrorContains(t, err, "main.go")
}

const (
	isc = "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted, provided that the above copyright notice and this permission notice appear in all copies.\n" +
		"THE SOFTWARE IS PROVIDED \"AS IS\" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.\n"
	unfree = "https://creativecommons.org/licenses/by-nc/4.0/\n"
)

func TestEachModuleNeedsAnAllowedLicence(t *testing.T) {
	for name, c := range map[string]struct {
		files   map[string]string
		ids     []string
		problem string
	}{
		"one":                                  {map[string]string{"LICENSE": isc, "main.go": "package main"}, []string{"ISC"}, ""},
		"by another name":                      {map[string]string{"COPYING.txt": isc}, []string{"ISC"}, ""},
		"none":                                 {map[string]string{"README.md": isc}, nil, "no known licence"},
		"one that is not allowed":              {map[string]string{"LICENSE": unfree}, []string{"CC-BY-NC-4.0"}, "LICENSE is under CC-BY-NC-4.0, which is not one of Apache-2.0"},
		"of a part":                            {map[string]string{"LICENSE": isc, "third_party/x/LICENSE": unfree}, []string{"CC-BY-NC-4.0", "ISC"}, "third_party/x/LICENSE is under CC-BY-NC-4.0"},
		"of a folder that no program contains": {map[string]string{"LICENSE": isc, "p/testdata/LICENSE": unfree}, []string{"ISC"}, ""},
		"with a notice":                        {map[string]string{"LICENSE": isc, "NOTICE": "Made by many."}, []string{"ISC"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644))
			}
			texts, ids, err := licencesIn(dir)
			require.ElementsMatch(t, c.ids, ids)
			if c.problem != "" {
				require.ErrorContains(t, err, c.problem)
				return
			}
			require.NoError(t, err)
			require.Contains(t, texts, "Permission to use")
			require.Equal(t, c.files["NOTICE"] != "", strings.Contains(texts, "Made by many."))
		})
	}
}
