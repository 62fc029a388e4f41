package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// repository is the path of the repository's root.
const repository = "../.."

// manual has the instructions in the documents.
type manual struct {
	// manifests and commands are pairs of a file and its text.
	manifests, commands [][2]string
}

// readManual extracts the code blocks from the documents.
func readManual(t *testing.T) (m manual) {
	files, err := filepath.Glob(filepath.Join(repository, "docs/*.md"))
	require.NoError(t, err)
	for _, file := range append(files, filepath.Join(repository, "README.md"), filepath.Join(repository, "conformance/README.md")) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, fence := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			m.manifests = append(m.manifests, [2]string{file, fence[1]})
		}
		for _, document := range regexp.MustCompile(`(?s)<<EOF\n(.*?)\n *EOF\n`).FindAllStringSubmatch(string(text), -1) {
			m.manifests = append(m.manifests, [2]string{file, regexp.MustCompile(`(?m)^    `).ReplaceAllString(document[1], "")})
		}
		joined := strings.ReplaceAll(string(text), "\\\n", " ")
		for _, line := range regexp.MustCompile(`(?m)^    +(?:\$ )?((?:make|helm|kubelb[a-z-]*|bin/kubelb[a-z-]*|kubectl) .*)$`).FindAllStringSubmatch(joined, -1) {
			command, _, _ := strings.Cut(line[1], " #")
			m.commands = append(m.commands, [2]string{file, strings.TrimSpace(command)})
		}
	}
	return m
}

func TestManifestsAndCommandsInTheDocumentsAreValid(t *testing.T) {
	independentOfDataplane(t)
	m := readManual(t)
	require.Greater(t, len(m.manifests), 4)
	require.Greater(t, len(m.commands), 25)
	for _, manifest := range m.manifests {
		_, err := lab.Hub.Kubectl(t.Context(), manifest[1], "apply", "--dry-run=server", "-f", "-")
		require.NoError(t, err, "%s: %s", manifest[0], manifest[1])
	}
	makefile, err := os.ReadFile(filepath.Join(repository, "Makefile"))
	require.NoError(t, err)
	for _, command := range m.commands {
		words := strings.Fields(command[1])
		where := command[0] + ": " + command[1]
		switch program := filepath.Base(words[0]); {
		case program == "make":
			require.Regexp(t, `(?m)^`+regexp.QuoteMeta(words[1])+`:`, string(makefile), where)
		case program == "helm":
			checkValues(t, words, where)
		case strings.HasPrefix(program, "kubelb"):
			checkFlags(t, program, words[1:], where)
		case strings.Contains(command[1], "| kubelb"):
			_, after, _ := strings.Cut(command[1], "| kubelb")
			checkFlags(t, "kubelb", strings.Fields(after), where)
		}
	}
}

// checkFlags checks by its help that a program has the command and the flags.
func checkFlags(t *testing.T, program string, words []string, where string) {
	var argv []string
	if program == "kubelb" {
		for _, word := range words {
			if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(word) {
				break
			}
			argv = append(argv, word)
		}
	}
	help, err := lab.On(t.Context(), lab.Hub.Namespace, append(append([]string{filepath.Join(os.Getenv("KUBELB_BIN"), program)}, argv...), "--help")...)
	require.NoError(t, err, where)
	if len(argv) > 0 {
		require.Contains(t, help, "kubelb "+argv[0], where)
	}
	for _, word := range words {
		if name, _, _ := strings.Cut(word, "="); strings.HasPrefix(name, "--") {
			require.Regexp(t, `(?m)^\s+(-\w, )?-{1,2}`+regexp.QuoteMeta(strings.TrimPrefix(name, "--"))+`\b`, help, where)
		}
	}
}

// checkValues checks that the chart has the values that the command sets.
func checkValues(t *testing.T, words []string, where string) {
	chart := slices.IndexFunc(words, func(word string) bool { return strings.HasPrefix(word, "deploy/charts/") })
	if chart < 0 {
		return
	}
	text, err := os.ReadFile(filepath.Join(repository, words[chart], "values.yaml"))
	require.NoError(t, err, where)
	var values map[string]any
	require.NoError(t, yaml.Unmarshal(text, &values))
	for i, word := range words {
		if word != "--set" {
			continue
		}
		path, _, _ := strings.Cut(strings.Trim(words[i+1], "'"), "=")
		var at any = values
		for _, key := range strings.Split(path, ".") {
			fields, isMap := at.(map[string]any)
			require.True(t, isMap, "%s: %s", where, path)
			require.Contains(t, fields, key, where)
			at = fields[key]
		}
	}
}
