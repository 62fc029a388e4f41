package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// own is what paths of this project's modules begin with.
const own = "kubelb.k8c.io/"

// module is one that is not this project's.
type module struct{ path, version string }

func (m module) String() string { return m.path + "@" + m.version }

// modulesOf are the modules that the programs were built of, each once.
func modulesOf(programs []string) ([]module, error) {
	if len(programs) == 0 {
		return nil, errors.New("name the programs")
	}
	var all []module
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", program, err)
		}
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			if !strings.HasPrefix(d.Path, own) && !strings.HasPrefix(d.Path, ".") {
				all = append(all, module{d.Path, d.Version})
			}
		}
	}
	slices.SortFunc(all, func(a, b module) int { return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.version, b.version)) })
	return slices.Compact(all), nil
}

// downloaded is what go mod download says of a module.
type downloaded struct{ Path, Version, Dir, Sum, Error string }

// download sees that the modules are in Go's cache, and returns where, in the same order.
func download(ctx context.Context, modules []module) ([]downloaded, error) {
	args := []string{"mod", "download", "-json"}
	for _, m := range modules {
		args = append(args, m.String())
	}
	c := exec.CommandContext(ctx, "go", args...)
	// By itself, whatever module or workspace this runs in.
	c.Dir, c.Env = os.TempDir(), append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	var all []downloaded
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var m downloaded
		if e := d.Decode(&m); errors.Is(e, io.EOF) {
			break
		} else if e != nil {
			return nil, fmt.Errorf("go mod download: %w", e)
		}
		if m.Error != "" {
			return nil, fmt.Errorf("%s@%s: %s", m.Path, m.Version, m.Error)
		}
		all = append(all, m)
	}
	if err != nil {
		return nil, fmt.Errorf("go mod download: %w: %s", err, stderr.String())
	}
	return all, nil
}
