package manifest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// split returns the single errors of joined errors.
func split(t require.TestingT, err error) []*Error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []*Error
		for _, e := range joined.Unwrap() {
			out = append(out, split(t, e)...)
		}
		return out
	}
	var e *Error
	require.ErrorAs(t, err, &e)
	return []*Error{e}
}

// For any file, Read returns objects, or errors that name a line of the file.
func FuzzRead(f *testing.F) {
	cases, err := filepath.Glob("../corecheck/corpus/*.yaml")
	require.NoError(f, err)
	require.NotEmpty(f, cases)
	for _, name := range cases {
		content, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(content)
	}
	f.Add([]byte("a: &x [*x]"))
	f.Add([]byte("{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Service, spec: {ports: [{port: a}]}}]}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		objects, err := Read("file.yaml", bytes.NewReader(content))
		lines := bytes.Count(content, []byte("\n")) + bytes.Count(content, []byte("\r")) + 1
		for _, e := range split(t, err) {
			require.GreaterOrEqual(t, e.Line, 1, e.Message)
			require.LessOrEqual(t, e.Line, lines+1, e.Message)
		}
		for _, o := range objects {
			line := o.Line("spec.ports[0].port")
			require.GreaterOrEqual(t, line, 1)
			require.LessOrEqual(t, line, lines+1)
		}
	})
}
