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

// ownPrefix is the prefix of the paths of this project's modules.
const ownPrefix = "kubelb.k8c.io/"

// module is a third-party module.
type module struct{ path, version string }

func (m module) String() string { return m.path + "@" + m.version }

// modulesOf returns the third-party modules in the programs, each once.
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
			if !strings.HasPrefix(d.Path, ownPrefix) && !strings.HasPrefix(d.Path, ".") {
				all = append(all, module{d.Path, d.Version})
			}
		}
	}
	slices.SortFunc(all, func(a, b module) int { return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.version, b.version)) })
	return slices.Compact(all), nil
}

// downloaded is the output of go mod download for a module.
type downloaded struct{ Path, Version, Dir, Sum, Error string }

// download fetches the modules into Go's cache, and returns their folders in the same order.
func download(ctx context.Context, modules []module) ([]downloaded, error) {
	args := []string{"mod", "download", "-json"}
	for _, m := range modules {
		args = append(args, m.String())
	}
	c := exec.CommandContext(ctx, "go", args...)
	// Outside any module and workspace, whose replacements would apply.
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
