package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are the licences that modules of shipped programs may have, as SPDX identifiers. They require that their text is shipped as well. MPL-2.0 also
// requires the source of its own files to be available: it is, as the module.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "MPL-2.0-no-copyleft-exception", "Unlicense"}

// licenceFile matches the names of files with licences, and of notices that must be shipped with them.
var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|unlicense)([.-].*)?$`)

// excluded are folders whose code is in no program.
var excluded = []string{"testdata", "vendor", "_examples", "examples", "docs"}

func licences(ctx context.Context, out string, programs []string, stdout io.Writer) error {
	modules, err := modulesOf(programs)
	if err != nil {
		return err
	}
	where, err := download(ctx, modules)
	if err != nil {
		return err
	}
	var all strings.Builder
	count := map[string]int{}
	var wrong []error
	for _, m := range where {
		texts, ids, err := licencesIn(m.Dir)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s@%s: %w", m.Path, m.Version, err))
		}
		count[strings.Join(ids, ", ")]++
		fmt.Fprintf(&all, "%s %s (%s)\n\n%s\n%s\n", m.Path, m.Version, strings.Join(ids, ", "), texts, strings.Repeat("-", 80))
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	for ids, n := range count {
		fmt.Fprintf(stdout, "%d modules: %s\n", n, ids)
	}
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(all.String()), 0o644)
}

// licencesIn returns the licence texts in a module's folder, and their identifiers. A module needs at least one known licence. All known ones must be
// allowed, also those in subfolders, which are of code that was copied from elsewhere.
func licencesIn(dir string) (texts string, ids []string, err error) {
	var all strings.Builder
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains(excluded, entry.Name()) && path != dir {
			return filepath.SkipDir
		}
		if !entry.Type().IsRegular() || !licenceFile.MatchString(entry.Name()) || strings.HasSuffix(entry.Name(), ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&all, "%s\n", strings.TrimSpace(string(text)))
		for _, m := range licensecheck.Scan(text).Match {
			if !slices.Contains(ids, m.ID) {
				ids = append(ids, m.ID)
			}
			if !slices.Contains(allowed, m.ID) {
				return fmt.Errorf("%s is under %s, which is not one of %s", strings.TrimPrefix(path, dir+"/"), m.ID, strings.Join(allowed, ", "))
			}
		}
		return nil
	})
	if err == nil && len(ids) == 0 {
		err = errors.New("no known licence is in it")
	}
	slices.Sort(ids)
	return all.String(), ids, err
}
