package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who writes a dataplane begins with these commands, in a directory outside of the repository.
func TestTheCommandsForADataplaneOfYourOwnBuildAndJudgeOneOutsideOfTheRepository(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	outside := t.TempDir()
	require.False(t, strings.HasPrefix(outside, root+"/"), "%s is in the repository", outside)
	commands := exec.CommandContext(t.Context(), "bash", "-euxo", "pipefail", "-c", commandsIn(t, "../docs/plugin.md", "The shortest way"))
	commands.Dir = outside
	commands.Env = append(os.Environ(), "KUBELB="+root, "GOWORK=", "GOFLAGS=")
	output, err := commands.CombinedOutput()
	require.NoError(t, err, string(output))
	require.Regexp(t, `(?m)^passed +tcp-echo +IPv6 `, string(output))
	require.Contains(t, string(output), " passed, 0 failed, 0 unsupported in ")

	// The document also shows the lines of go.mod.
	module, err := os.ReadFile(filepath.Join(outside, "my-dataplane/go.mod"))
	require.NoError(t, err)
	for _, line := range fencedLines(t, "../docs/plugin.md") {
		require.Contains(t, string(module), strings.ReplaceAll(line, "KUBELB", root))
	}
}

// commandsIn returns the commands, which are indented, of a section of a document.
func commandsIn(t *testing.T, path, section string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	_, after, found := strings.Cut(string(text), "\n## "+section+"\n")
	require.True(t, found, "%s has no section %q", path, section)
	within, _, _ := strings.Cut(after, "\n## ")
	lines := regexp.MustCompile(`(?m)^    (.*)$`).FindAllStringSubmatch(within, -1)
	require.NotEmpty(t, lines)
	var commands strings.Builder
	for _, line := range lines {
		commands.WriteString(line[1] + "\n")
	}
	return commands.String()
}

// fencedLines returns the lines of the first fenced block of a document that say something.
func fencedLines(t *testing.T, path string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)```\n(.*?)```").FindStringSubmatch(string(text))
	require.NotNil(t, block)
	for line := range strings.Lines(block[1]) {
		if strings.HasPrefix(line, "\t") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	require.NotEmpty(t, lines)
	return lines
}
