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
	flagsComment   = regexp.MustCompile(`(?m)^# flags: (.*)$`)
	refusedComment = regexp.MustCompile(`(?m)^# refused: (.*)$`)
)

func ofComment(comment *regexp.Regexp, content []byte) string {
	if found := comment.FindSubmatch(content); found != nil {
		return string(found[1])
	}
	return ""
}

// Inputs of the corpus that API servers would refuse have a comment with the message. All others could be stored.
func TestTheAPIServerAcceptsEachInputOfTheCorpusThatIsNotMarkedAsRefused(t *testing.T) {
	files, err := filepath.Glob("../corecheck/corpus/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	validator := &validation.Validator{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			objects, err := manifest.Read(filepath.Base(file), bytes.NewReader(content))
			require.NoError(t, err)
			options := Options{Validator: validator}
			flags := pflag.NewFlagSet("corpus", pflag.ContinueOnError)
			options.AddFlags(flags)
			require.NoError(t, flags.Parse(strings.Fields(ofComment(flagsComment, content))))
			result, err := Render(t.Context(), objects, options)
			require.NoError(t, err)
			var messages []string
			for _, p := range result.Problems {
				if p.Reason == ReasonInvalid || p.Reason == reasonHubRefused {
					messages = append(messages, p.Message)
				}
			}
			if want := ofComment(refusedComment, content); want != "" {
				require.Contains(t, strings.Join(messages, "\n"), want)
				return
			}
			require.Empty(t, messages, "mark the input with '# refused: ' and the message")
		})
	}
}
