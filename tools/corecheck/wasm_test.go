package corecheck

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"kubelb.k8c.io/core/explain"
)

// wasi runs core.wasm.
type wasi struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
}

func newWASI(t *testing.T) *wasi {
	t.Helper()
	ctx := context.Background()
	binary, err := os.ReadFile(filepath.Join(built, "core.wasm"))
	require.NoError(t, err)
	runtime := wazero.NewRuntime(ctx)
	t.Cleanup(func() { require.NoError(t, runtime.Close(ctx)) })
	wasi_snapshot_preview1.MustInstantiate(ctx, runtime)
	module, err := runtime.CompileModule(ctx, binary)
	require.NoError(t, err)
	return &wasi{runtime, module}
}

// answer runs a fresh instance on standard input and returns its standard output and exit code.
func (w *wasi) answer(t *testing.T, input []byte) (string, uint32) {
	t.Helper()
	var out bytes.Buffer
	config := wazero.NewModuleConfig().WithName("").WithStdin(bytes.NewReader(input)).WithStdout(&out)
	instance, err := w.runtime.InstantiateModule(context.Background(), w.module, config)
	var exit *sys.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
		return out.String(), exit.ExitCode()
	}
	require.NoError(t, instance.Close(context.Background()))
	return out.String(), 0
}

// Under 5.1 MB, and under 1.5 MB compressed, as web servers send it.
func TestTheModuleIsSmall(t *testing.T) {
	for _, name := range []string{"core.wasm", "core_js.wasm"} {
		binary, err := os.ReadFile(filepath.Join(built, name))
		require.NoError(t, err)
		var zipped bytes.Buffer
		w, err := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
		require.NoError(t, err)
		_, err = w.Write(binary)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		t.Logf("%s: %d bytes, %d gzipped", name, len(binary), zipped.Len())
		require.Less(t, len(binary), 5_100_000)
		require.Less(t, zipped.Len(), 1_500_000)
	}
}

// documents returns the whole corpus, and random inputs with and without damaged bytes.
func documents(t *testing.T) [][]byte {
	t.Helper()
	var out [][]byte
	for _, c := range corpus(t) {
		out = append(out, c.document(t))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for seed := range 400 {
		document, err := json.Marshal(inputs().Example(seed))
		require.NoError(t, err)
		out = append(out, document, damaged(document, random))
	}
	return out
}

// damaged replaces a few bytes, but never by a line break.
func damaged(document []byte, random *rand.Rand) []byte {
	out := bytes.Clone(document)
	for range 1 + random.IntN(4) {
		out[random.IntN(len(out))] = byte(' ' + random.IntN('~'-' '))
	}
	return out
}

func TestWASMGivesTheSameAnswersAsTheNativeCore(t *testing.T) {
	w := newWASI(t)
	var stream, want bytes.Buffer
	streamed, invalid := 0, 0
	for _, document := range documents(t) {
		native := explain.JSON(document)
		if json.Valid(document) {
			stream.Write(append(document, '\n'))
			want.Write(append(native, '\n'))
			streamed++
			continue
		}
		// A document that is not JSON ends the program, so it gets an instance of its own.
		if invalid++; invalid <= 100 {
			answer, exit := w.answer(t, document)
			require.EqualValues(t, 1, exit)
			require.Contains(t, answer, `"error":"not a document of version v1`)
		}
	}
	got, exit := w.answer(t, stream.Bytes())
	require.Zero(t, exit)
	requireSameLines(t, want.String(), got)
	t.Logf("%d documents have the same answer, %d that are not JSON are refused", streamed, min(invalid, 100))
}

func TestJavaScriptGivesTheSameAnswersAsTheNativeCore(t *testing.T) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	runtime := filepath.Join(strings.TrimSpace(string(root)), "lib", "wasm", "wasm_exec.js")
	var stream, want bytes.Buffer
	all := documents(t)
	for _, document := range all {
		stream.Write(append(document, '\n'))
		want.Write(append(explain.JSON(document), '\n'))
	}
	want.Write(append(explain.JSON(nil), '\n'))
	cmd := exec.Command("node", "testdata/explain.js", runtime, filepath.Join(built, "core_js.wasm"))
	cmd.Stdin, cmd.Stderr = &stream, os.Stderr
	got, err := cmd.Output()
	require.NoError(t, err, "Node.js is needed: 'make deps' installs it")
	requireSameLines(t, want.String(), string(got))
	t.Logf("%d documents have the same answer", len(all))
}

// requireSameLines reports only the first difference, since answers are long.
func requireSameLines(t *testing.T, want, got string) {
	t.Helper()
	wanted, gotten := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(wanted), len(gotten)) {
		require.Equal(t, wanted[i], gotten[i], "answer %d", i)
	}
	require.Len(t, gotten, len(wanted))
}
