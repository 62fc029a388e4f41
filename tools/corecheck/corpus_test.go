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

// corpusCase is one file of the corpus, parsed and translated.
type corpusCase struct {
	name   string
	result *render.Result
}

// corpus reads all cases. A case is Kubernetes YAML. Its first line is a comment that says what the case shows. Further comments may give flags of kubelb
// render ("# flags: --tenant=a"), a number of nodes to add ("# nodes: 2000"), or the error with which an API server refuses an object of the case
// ("# refused: spec.ports[0].port: Invalid value: 0"). The core handles such objects too. A test of package render checks that the API server refuses them.
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

// directive returns the value of the comment "# name: value" at the beginning, empty if there is none.
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
	// maxSimilar is the number of similar lines that an expected file keeps. Of more, the middle is replaced by its hash.
	maxSimilar = 60
	// maxLines is the same for a whole text, of which endLines lines remain at each end.
	maxLines, endLines = 1000, 200
)

// abridge shortens runs of lines that differ only in their values, and then the text if it is still long.
func abridge(text string) string {
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
		if n <= maxSimilar {
			b.WriteString(strings.Join(lines[:n], ""))
		} else {
			middle := strings.Join(lines[5:n-5], "")
			fmt.Fprintf(&b, "%s# ... %d lines more of this kind, of SHA-256 %x\n%s", strings.Join(lines[:5], ""), n-10, sha256.Sum256([]byte(middle)), strings.Join(lines[n-5:n], ""))
		}
		lines = lines[n:]
	}
	lines = strings.SplitAfter(b.String(), "\n")
	if len(lines) <= maxLines {
		return b.String()
	}
	middle := strings.Join(lines[endLines:len(lines)-endLines], "")
	return fmt.Sprintf("%s# ... %d lines more, of SHA-256 %x\n%s", strings.Join(lines[:endLines], ""), len(lines)-2*endLines, sha256.Sum256([]byte(middle)), strings.Join(lines[len(lines)-endLines:], ""))
}

// document returns the case as input for core.wasm.
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

// The expected file of each case has the hub's objects, the model and the problems.
func TestCorpus(t *testing.T) {
	kept := map[string]bool{}
	for _, c := range corpus(t) {
		t.Run(c.name, func(t *testing.T) {
			compare(t, kept, c.name+".expected", abridge(c.expected(t)))
		})
	}
	orphans(t, kept, ".expected")
}

// The nftables dataplane renders each case as its file says, and nft accepts it. empty.nft has the tables without any records.
// The other files have only the additions to it.
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
			compare(t, kept, c.name+".nft", abridge(added))
			checkWithNft(t, empty+added)
		})
	}
	orphans(t, kept, ".nft")
}

// The other dataplanes render each case as its files say.
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
				compare(t, kept, c.name+"."+backend, abridge(text))
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

// checkWithNft runs nft --check on the rules, in a network namespace of its own.
func checkWithNft(t *testing.T, rules string) {
	t.Helper()
	namespace := []string{"--net"}
	if os.Geteuid() != 0 {
		if len(rules) > 1<<20 {
			t.Skip("only root may load that many rules at once: nft has not checked them")
		}
		namespace = append(namespace, "--map-root-user")
	}
	check := exec.Command("unshare", append(namespace, "nft", "--check", "--file", "-")...)
	check.Stdin = strings.NewReader(rules)
	output, err := check.CombinedOutput()
	require.NoError(t, err, "nft --check: %s", output)
}

// block is a set, map, counter or chain of a table: its header and its lines.
type block struct {
	header string
	lines  []string
}

// blocks parses the output of nft by its indentation.
func blocks(text string) (tables []string, byTable map[string][]block) {
	byTable = map[string][]block{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "table"):
			tables = append(tables, line)
		case strings.HasPrefix(line, "\t\t"):
			last := &byTable[tables[len(tables)-1]][len(byTable[tables[len(tables)-1]])-1]
			last.lines = append(last.lines, line)
		case strings.HasPrefix(line, "\t") && strings.HasSuffix(line, "{"):
			byTable[tables[len(tables)-1]] = append(byTable[tables[len(tables)-1]], block{header: line})
		}
	}
	return tables, byTable
}

// additions returns the blocks of text that are new or changed since empty, in nft's syntax.
func additions(text, empty string) string {
	var b strings.Builder
	tables, byTable := blocks(text)
	_, before := blocks(empty)
	for _, table := range tables {
		var added []block
		for _, now := range byTable[table] {
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

// compare compares the content with the file, or writes the file with -golden.
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
