package corecheck

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// golden rewrites the expected files of the corpus.
var golden = flag.Bool("golden", false, "rewrite the expected files of the corpus and remove orphans")

// built is the folder with the programs that TestMain builds.
var built string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if worker := flag.Lookup("test.fuzzworker"); worker.Value.String() == "true" {
		return m.Run() // fuzz workers need no programs
	}
	dir, err := os.MkdirTemp("", "corecheck-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	built = dir
	for _, b := range []struct{ in, out, target, system, arch string }{
		{"../../core", "core.wasm", "./wasm", "wasip1", "wasm"},
		{"../../core", "core_js.wasm", "./wasm", "js", "wasm"},
		{"../../backends/nftables", "kubelb-backend-nftables", "./cmd/kubelb-backend-nftables", "", ""},
		{"../../backends/ebpf", "kubelb-backend-ebpf", "./cmd/kubelb-backend-ebpf", "", ""},
		{"../../backends/envoy", "kubelb-backend-envoy", "./cmd/kubelb-backend-envoy", "", ""},
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, b.out), b.target)
		cmd.Dir = b.in
		cmd.Env = append(os.Environ(), "GOWORK=off")
		if b.system != "" {
			cmd.Env = append(cmd.Env, "GOOS="+b.system, "GOARCH="+b.arch)
		}
		if output, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b.out, err, output)
			return 1
		}
	}
	return m.Run()
}
