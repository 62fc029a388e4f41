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

// allowed are the licences that what is shipped may have, by their SPDX identifiers: they ask for their text to go with it, and MPL-2.0 for the source of
// its own files, which is the module.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "MPL-2.0-no-copyleft-exception", "Unlicense"}

// licenceFile is what files with licences are called, and with notices that are to go with them.
var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|unlicense)([.-].*)?$`)

// elsewhere are folders whose code no program has.
var elsewhere = []string{"testdata", "vendor", "_examples", "examples", "docs"}

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

// licencesIn are the texts in a module's folder, and the licences that they are. Its own, at the root, are to be known and allowed, and so are all of those
// below it that are known: they are of code that has come from elsewhere.
func licencesIn(dir string) (texts string, ids []string, err error) {
	var all strings.Builder
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains(elsewhere, entry.Name()) && path != dir {
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
				return fmt.Errorf("%s is under %s, which is none of %s", strings.TrimPrefix(path, dir+"/"), m.ID, strings.Join(allowed, ", "))
			}
		}
		return nil
	})
	if err == nil && len(ids) == 0 {
		err = errors.New("no licence is found in it")
	}
	slices.Sort(ids)
	return all.String(), ids, err
}
