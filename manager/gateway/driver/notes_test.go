package driver

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAChangedNoteIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	r := &runner{log: slog.New(slog.NewTextHandler(&log, nil))}
	r.setNotes([]string{"fast path: none: no interface with a global address"})
	r.setNotes([]string{"fast path: none: no interface with a global address"})
	r.setNotes([]string{"fast path: known flows take a flowtable"})
	require.Equal(t, []string{"fast path: known flows take a flowtable"}, r.description.Notes)
	require.Equal(t, 2, strings.Count(log.String(), "note of the plugin"))
}
