package gateway

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestANoteThatChangesIsTakenOverAndLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	h := &host{log: slog.New(slog.NewTextHandler(&log, nil))}
	h.noteAnew([]string{"fast path: none: no interface with a global address"})
	h.noteAnew([]string{"fast path: none: no interface with a global address"})
	h.noteAnew([]string{"fast path: known flows take a flowtable"})
	require.Equal(t, []string{"fast path: known flows take a flowtable"}, h.description.Notes)
	require.Equal(t, 2, strings.Count(log.String(), "backend notes"))
}
