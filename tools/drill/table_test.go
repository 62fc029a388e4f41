package drill

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/results"
)

var golden = flag.Bool("golden", false, "write the tables in RESULTS.md")

// restartsFile is the suffix of files with results of restarts, which have no table.
const restartsFile = "-restarts"

func TestTheTablesShowTheResults(t *testing.T) {
	const document = "RESULTS.md"
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	files, err := filepath.Glob("results/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if strings.HasSuffix(name, restartsFile) {
			continue
		}
		words := strings.Split(name, "-")
		require.Len(t, words, 3, "%s does not have a name like ANNOUNCE-BACKEND-FORWARDING", file)
		o := Options{Announce: words[0], Backend: words[1], Forwarding: words[2]}
		all, err := results.Read[Result](file)
		require.NoError(t, err)
		table := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(o.Fleet()) + ` \|.*\n(?:\|.*\n)+`)
		found := table.FindAll(text, -1)
		require.Len(t, found, 1, "%s must have one table for %s, which begins with '| %s | '", document, file, o.Fleet())
		if *golden {
			text = table.ReplaceAllLiteral(text, []byte(o.Table(all)))
			continue
		}
		require.Equal(t, o.Table(all), string(found[0]), "run 'make drill-tables'")
	}
	if *golden {
		require.NoError(t, os.WriteFile(document, text, 0o644))
	}
}
