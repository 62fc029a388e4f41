package render

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/manifest"
	"kubelb.k8c.io/tools/validation"
)

var (
	saysFlags   = regexp.MustCompile(`(?m)^# flags: (.*)$`)
	saysRefused = regexp.MustCompile(`(?m)^# refused: (.*)$`)
)

func ofComment(comment *regexp.Regexp, content []byte) string {
	if found := comment.FindSubmatch(content); found != nil {
		return string(found[1])
	}
	return ""
}

// What API servers would refuse of the corpus is marked, with their words; everything else could be stored.
func TestEachInputOfTheCorpusIsTakenByTheAPIOrSaysWhyNot(t *testing.T) {
	files, err := filepath.Glob("../corecheck/corpus/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	judge := &validation.Validator{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			objects, err := manifest.Read(filepath.Base(file), bytes.NewReader(content))
			require.NoError(t, err)
			options := Options{Judge: judge}
			flags := pflag.NewFlagSet("corpus", pflag.ContinueOnError)
			options.AddFlags(flags)
			require.NoError(t, flags.Parse(strings.Fields(ofComment(saysFlags, content))))
			result, err := Render(t.Context(), objects, options)
			require.NoError(t, err)
			var said []string
			for _, p := range result.Problems {
				if p.Reason == ReasonInvalid || p.Reason == reasonHubRefused {
					said = append(said, p.Message)
				}
			}
			if want := ofComment(saysRefused, content); want != "" {
				require.Contains(t, strings.Join(said, "\n"), want)
				return
			}
			require.Empty(t, said, "mark the input with '# refused: ' and the message")
		})
	}
}
