package corecheck

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/tools/manifest"
	"kubelb.k8c.io/tools/render"
)

const corpusDir = "corpus"

// corpusCase is one file of the corpus, read and translated.
type corpusCase struct {
	name   string
	result *render.Result
}

// corpus reads all cases. A case is plain Kubernetes YAML; its first line says what it shows. Comments that follow may give flags of kubelb render
// ("# flags: --tenant=a"), a number of nodes to add ("# nodes: 2000"), or what an API server says of an object of the case, which so cannot be
// stored ("# refused: spec.ports[0].port: Invalid value: 0"). The core has an answer to such objects too. A test of package render holds them to it.
func corpus(tb testing.TB) []corpusCase {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(corpusDir, "*.yaml"))
	require.NoError(tb, err)
	require.NotEmpty(tb, files)
	cases := make([]corpusCase, len(files))
	for i, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(tb, err)
		require.True(tb, bytes.HasPrefix(content, []byte("# ")), "%s: the first line must say what the case shows", file)
		content = append(content, manyNodes(tb, directive(string(content), "nodes"))...)
		objects, err := manifest.Read(filepath.Base(file), bytes.NewReader(content))
		require.NoError(tb, err)
		cases[i].name = strings.TrimSuffix(filepath.Base(file), ".yaml")
		options := optionsOf(tb, string(content))
		options.AsStored = true
		cases[i].result, err = render.Render(tb.Context(), objects, options)
		require.NoError(tb, err, file)
	}
	return cases
}

func optionsOf(tb testing.TB, content string) render.Options {
	tb.Helper()
	var options render.Options
	flags := pflag.NewFlagSet("corpus", pflag.ContinueOnError)
	options.AddFlags(flags)
	require.NoError(tb, flags.Parse(strings.Fields(directive(content, "flags"))))
	return options
}

// directive returns what a comment at the beginning says after "# name: ", empty for nothing.
func directive(content, name string) string {
	for line := range strings.Lines(content) {
		if !strings.HasPrefix(line, "# ") {
			break
		}
		if value, ok := strings.CutPrefix(line, "# "+name+": "); ok {
			return strings.TrimSuffix(value, "\n")
		}
	}
	return ""
}

func manyNodes(tb testing.TB, count string) string {
	tb.Helper()
	if count == "" {
		return ""
	}
	n, err := strconv.Atoi(count)
	require.NoError(tb, err)
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Node, metadata: {name: n%d}, status: {addresses: [{type: InternalIP, address: 198.18.%d.%d}]}}\n", i, i/250, i%250+1)
	}
	return b.String()
}

const (
	// longest is how many lines alike a reviewer would read; of more, the middle is told by its hash.
	longest = 60
	// longestText is the same of a whole text, of which so many lines stay at each end.
	longestText, ends = 1000, 200
)

// abridged shortens runs of lines that are alike but for their values, and what is long after that.
func abridged(text string) string {
	shape := func(line string) string {
		indent := len(line) - len(strings.TrimLeft(line, " \t"))
		word, _, _ := strings.Cut(strings.TrimLeft(line, " \t-"), " ")
		return line[:indent] + strings.TrimRight(word, "0123456789abcdefx.:")
	}
	var b strings.Builder
	lines := strings.SplitAfter(text, "\n")
	for len(lines) > 0 {
		n := 1
		for n < len(lines) && shape(lines[n]) == shape(lines[0]) {
			n++
		}
		if n <= longest {
			b.WriteString(strings.Join(lines[:n], ""))
		} else {
			middle := strings.Join(lines[5:n-5], "")
			fmt.Fprintf(&b, "%s# ... %d lines more of this kind, of SHA-256 %x\n%s", strings.Join(lines[:5], ""), n-10, sha256.Sum256([]byte(middle)), strings.Join(lines[n-5:n], ""))
		}
		lines = lines[n:]
	}
	lines = strings.SplitAfter(b.String(), "\n")
	if len(lines) <= longestText {
		return b.String()
	}
	middle := strings.Join(lines[ends:len(lines)-ends], "")
	return fmt.Sprintf("%s# ... %d lines more, of SHA-256 %x\n%s", strings.Join(lines[:ends], ""), len(lines)-2*ends, sha256.Sum256([]byte(middle)), strings.Join(lines[len(lines)-ends:], ""))
}

// document is the case as core.wasm takes it.
func (c corpusCase) document(tb testing.TB) []byte {
	tb.Helper()
	document, err := json.Marshal(c.result.Input)
	require.NoError(tb, err)
	return document
}

func (c corpusCase) expected(tb testing.TB) string {
	tb.Helper()
	var b strings.Builder
	require.NoError(tb, c.result.Print(&b, "text", "", ""))
	if len(c.result.Problems) > 0 {
		b.WriteString("---\n# Problems:\n")
		for _, p := range c.result.Problems {
			fmt.Fprintln(&b, p)
		}
	}
	return b.String()
}

// Every case becomes what the file beside it says: the hub's objects, the model and the problems.
func TestCorpus(t *testing.T) {
	kept := map[string]bool{}
	for _, c := range corpus(t) {
		t.Run(c.name, func(t *testing.T) {
			compare(t, kept, c.name+".expected", abridged(c.expected(t)))
		})
	}
	orphans(t, kept, ".expected")
}

// A backend would hold for every case what the file beside it says, and the kernel's own tool can read it. The files show
// what is added to the tables that no case fills, which empty.nft shows.
func TestCorpusInNftables(t *testing.T) {
	process := load(t, "nftables")
	empty, err := process.Render(t.Context(), model.Snapshot{})
	require.NoError(t, err)
	kept := map[string]bool{}
	compare(t, kept, "empty.nft", empty)
	for _, c := range corpus(t) {
		if len(c.result.Output.Model.Frontends) == 0 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			text, err := c.result.RenderBy(t.Context(), process)
			require.NoError(t, err)
			added := additions(text, empty)
			compare(t, kept, c.name+".nft", abridged(added))
			checkWithNft(t, empty+added)
		})
	}
	orphans(t, kept, ".nft")
}

// The other dataplanes would hold for every case what the files beside it say.
func TestCorpusInEBPFAndEnvoy(t *testing.T) {
	for _, backend := range []string{"ebpf", "envoy"} {
		process := load(t, backend)
		kept := map[string]bool{}
		for _, c := range corpus(t) {
			if len(c.result.Output.Model.Frontends) == 0 {
				continue
			}
			t.Run(backend+"/"+c.name, func(t *testing.T) {
				text, err := c.result.RenderBy(t.Context(), process)
				require.NoError(t, err)
				compare(t, kept, c.name+"."+backend, abridged(text))
			})
		}
		orphans(t, kept, "."+backend)
	}
}

// load starts the plugin of a dataplane.
func load(t *testing.T, backend string) *plugin.Process {
	t.Helper()
	process, err := plugin.Load(plugin.Options{Path: filepath.Join(built, "kubelb-backend-"+backend), SocketDir: filepath.Join(built, "s")})
	require.NoError(t, err)
	t.Cleanup(process.Stop)
	return process
}

// checkWithNft has nft read the rules as the kernel would take them, in a network namespace of its own.
func checkWithNft(t *testing.T, rules string) {
	t.Helper()
	namespace := []string{"--net"}
	if os.Geteuid() != 0 {
		if len(rules) > 1<<20 {
			t.Skip("only root may hand that many rules to the kernel at once: nft has not checked them")
		}
		namespace = append(namespace, "--map-root-user")
	}
	check := exec.Command("unshare", append(namespace, "nft", "--check", "--file", "-")...)
	check.Stdin = strings.NewReader(rules)
	output, err := check.CombinedOutput()
	require.NoError(t, err, "nft --check: %s", output)
}

// block is a set, map, counter or chain of a table, by its header, with its lines.
type block struct {
	header string
	lines  []string
}

// blocks takes nft's text apart by its indentation.
func blocks(text string) (tables []string, of map[string][]block) {
	of = map[string][]block{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "table"):
			tables = append(tables, line)
		case strings.HasPrefix(line, "\t\t"):
			last := &of[tables[len(tables)-1]][len(of[tables[len(tables)-1]])-1]
			last.lines = append(last.lines, line)
		case strings.HasPrefix(line, "\t") && strings.HasSuffix(line, "{"):
			of[tables[len(tables)-1]] = append(of[tables[len(tables)-1]], block{header: line})
		}
	}
	return tables, of
}

// additions returns what text has over empty: the blocks that are new or hold more, in nft's syntax.
func additions(text, empty string) string {
	var b strings.Builder
	tables, of := blocks(text)
	_, before := blocks(empty)
	for _, table := range tables {
		var added []block
		for _, now := range of[table] {
			same := func(b block) bool { return b.header == now.header && slices.Equal(b.lines, now.lines) }
			if !slices.ContainsFunc(before[table], same) {
				added = append(added, now)
			}
		}
		if len(added) == 0 {
			continue
		}
		fmt.Fprintln(&b, table)
		for _, block := range added {
			fmt.Fprintln(&b, block.header)
			for _, line := range block.lines {
				fmt.Fprintln(&b, line)
			}
			fmt.Fprintln(&b, "\t}")
		}
		fmt.Fprintln(&b, "}")
	}
	return b.String()
}

// compare holds the content against the file, or writes it.
func compare(t *testing.T, kept map[string]bool, name, content string) {
	t.Helper()
	kept[name] = true
	path := filepath.Join(corpusDir, name)
	if *golden {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is missing: run 'make golden' and read what it writes", path)
	}
	require.NoError(t, err)
	require.Equal(t, string(want), content, "%s differs: if that is intended, run 'make golden' and read the difference", path)
}

// orphans reports, or removes, expected files without a case.
func orphans(t *testing.T, kept map[string]bool, suffix string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(corpusDir, "*"+suffix))
	require.NoError(t, err)
	for _, file := range files {
		if kept[filepath.Base(file)] {
			continue
		}
		if !*golden {
			t.Errorf("%s belongs to no case: run 'make golden'", file)
			continue
		}
		require.NoError(t, os.Remove(file))
	}
}
