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

// The database that CI asks: a vulnerability that becomes known breaks no build of what has not changed. It is raised as any other dependency.
const (
	databaseModule = "golang.org/x/vulndb"
	pinnedDatabase = "v0.0.0-20261105234957-e22db6528018"
	pinnedSum      = "h1:mfngRv0Yoh0VApsXKEN82CjD99kl7mtparN3bs3JnqI="
)

// accepted are vulnerabilities that the programs are not subject to, with the reason. One that is not found any more is to leave this list.
var accepted = map[string]string{
	"GO-2026-4736": "mended by GoBGP's commit 583080a in v4.4.0, which the database does not know",
}

// finding is a vulnerability of a program.
type finding struct {
	id, summary, module, found, fixed string
	// symbols are the functions that the program has in it.
	symbols []string
}

func (f finding) String() string {
	fixed := "mended in no version yet"
	if f.fixed != "" {
		fixed = "mended in " + f.fixed
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
		some, err := scanned(ctx, filepath.Join(database.Dir, "data", "osv"), program)
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
			return fmt.Errorf("%s is accepted, and no program has it any more: take it out of the list", id)
		}
	}
	fmt.Fprintf(out, "%d programs have no other function that is known to be vulnerable\n", len(programs))
	return nil
}

// scanned are the vulnerabilities of which the program has vulnerable functions in it.
func scanned(ctx context.Context, database, program string) ([]finding, error) {
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

// findings reads what govulncheck writes (https://pkg.go.dev/golang.org/x/vuln/internal/govulncheck). Those without functions are of modules and packages
// whose vulnerable part the program does not have.
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
