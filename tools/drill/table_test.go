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

var golden = flag.Bool("golden", false, "write the tables in RESULTS.md anew")

// The results of restarts are told in a sentence.
const restartsFile = "-restarts"

func TestTheTablesSayWhatTheResultsDo(t *testing.T) {
	const document = "RESULTS.md"
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	files, err := filepath.Glob("results/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		of := strings.TrimSuffix(filepath.Base(file), ".json")
		if strings.HasSuffix(of, restartsFile) {
			continue
		}
		words := strings.Split(of, "-")
		require.Len(t, words, 3, "%s is not named ANNOUNCE-BACKEND-FORWARDING", file)
		o := Options{Announce: words[0], Backend: words[1], Forwarding: words[2]}
		all, err := results.Read[Result](file)
		require.NoError(t, err)
		table := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(o.Fleet()) + ` \|.*\n(?:\|.*\n)+`)
		there := table.FindAll(text, -1)
		require.Len(t, there, 1, "%s has no table for %s, or several: begin one with '| %s | '", document, file, o.Fleet())
		if *golden {
			text = table.ReplaceAllLiteral(text, []byte(o.Table(all)))
			continue
		}
		require.Equal(t, o.Table(all), string(there[0]), "run 'make drill-tables'")
	}
	if *golden {
		require.NoError(t, os.WriteFile(document, text, 0o644))
	}
}
