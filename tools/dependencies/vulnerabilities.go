package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/vuln/scan"
)

// CI uses a pinned database, so that a new vulnerability does not break the build of unchanged code. Raise the version as of any other dependency.
const (
	databaseModule = "golang.org/x/vulndb"
	pinnedDatabase = "v0.0.0-20261105234957-e22db6528018"
	pinnedSum      = "h1:mfngRv0Yoh0VApsXKEN82CjD99kl7mtparN3bs3JnqI="
)

// accepted are vulnerabilities that do not affect the programs, with the reason. The command fails if one of them is not found any more.
var accepted = map[string]string{
	"GO-2026-4736": "fixed by GoBGP's commit 583080a in v4.4.0, which the database does not know",
}

// finding is a vulnerability in a program.
type finding struct {
	id, summary, module, found, fixed string
	// symbols are the vulnerable functions that the program contains.
	symbols []string
}

func (f finding) String() string {
	fixed := "fixed in no version yet"
	if f.fixed != "" {
		fixed = "fixed in " + f.fixed
	}
	return fmt.Sprintf("%s: %s: %s@%s, %s (%s)", f.id, f.summary, f.module, f.found, fixed, strings.Join(f.symbols[:min(len(f.symbols), 3)], ", "))
}

func vulnerabilities(ctx context.Context, version string, programs []string, out io.Writer) error {
	if len(programs) == 0 {
		return errors.New("name the programs")
	}
	where, err := download(ctx, []module{{databaseModule, version}})
	if err != nil {
		return err
	}
	database := where[0]
	if version == pinnedDatabase && database.Sum != pinnedSum {
		return fmt.Errorf("%s@%s has the sum %s instead of %s", databaseModule, version, database.Sum, pinnedSum)
	}
	fmt.Fprintln(out, "vulnerabilities as of", database.Version)
	found, has := map[string]finding{}, map[string][]string{}
	for _, program := range programs {
		some, err := scanProgram(ctx, filepath.Join(database.Dir, "data", "osv"), program)
		if err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		for _, f := range some {
			found[f.id], has[f.id] = f, append(has[f.id], filepath.Base(program))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(out, "%s\n  in %s\n", found[id], strings.Join(has[id], ", "))
		if why, is := accepted[id]; is {
			fmt.Fprintln(out, "  accepted:", why)
			delete(found, id)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("%d known vulnerabilities: raise the module, or Go (GOTOOLCHAIN in the Makefile)", len(found))
	}
	for id := range accepted {
		if has[id] == nil {
			return fmt.Errorf("%s is accepted, but no program has it any more: remove it from the list", id)
		}
	}
	fmt.Fprintf(out, "%d programs have no other function with a known vulnerability\n", len(programs))
	return nil
}

// scanProgram returns the vulnerabilities whose vulnerable functions are in the program.
func scanProgram(ctx context.Context, database, program string) ([]finding, error) {
	var stdout, stderr bytes.Buffer
	c := scan.Command(ctx, "-db=file://"+database, "-mode=binary", "-format=json", program)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Start(); err != nil {
		return nil, err
	}
	if err := c.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return findings(&stdout)
}

// findings parses the output of govulncheck (https://pkg.go.dev/golang.org/x/vuln/internal/govulncheck). It skips findings without functions: the program
// does not contain the vulnerable part of the module or package.
func findings(output io.Reader) (all []finding, err error) {
	summaries, of := map[string]string{}, map[string]*finding{}
	for d := json.NewDecoder(output); ; {
		var message struct {
			OSV     *struct{ ID, Summary string }
			Finding *struct {
				OSV          string
				FixedVersion string `json:"fixed_version"`
				Trace        []struct{ Module, Version, Package, Receiver, Function string }
			}
		}
		if err := d.Decode(&message); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if o := message.OSV; o != nil {
			summaries[o.ID] = o.Summary
		}
		m := message.Finding
		if m == nil || len(m.Trace) == 0 || m.Trace[0].Function == "" {
			continue
		}
		at := m.Trace[0]
		if of[m.OSV] == nil {
			of[m.OSV] = &finding{id: m.OSV, summary: summaries[m.OSV], module: at.Module, found: at.Version, fixed: m.FixedVersion}
		}
		name := at.Function
		if at.Receiver != "" {
			name = at.Receiver + "." + name
		}
		of[m.OSV].symbols = append(of[m.OSV].symbols, at.Package+"."+name)
	}
	for _, f := range of {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b finding) int { return strings.Compare(a.id, b.id) })
	return all, nil
}
