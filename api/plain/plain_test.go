package plain

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestControlCharactersAreEscaped(t *testing.T) {
	for text, shown := range map[string]string{
		"red \x1b[31m, title \x1b]0;root\a":     `red \u001b[31m, title \u001b]0;root\u0007`,
		"the same in one byte: \u009b31m":       `the same in one byte: \u009b31m`,
		"back\b\r":                              `back\u0008\u000d`,
		"from right to left \u202e and \u2066":  `from right to left \u202e and \u2066`,
		"not UTF-8 \xff\xc3(":                   `not UTF-8 \xff\xc3(`,
		"a line\nand a tab\t":                   "a line\nand a tab\t",
		"Münster, 東京, \U0001f4a1 and \u200bgap": `Münster, 東京, 💡 and \u200bgap`,
		"\U000e0041":                            `\U000e0041`,
	} {
		require.Equal(t, shown, Text(text))
	}
	require.Equal(t, `one\u000ano problems`, Line("one\nno problems"))
}

func TestALongMessageIsCut(t *testing.T) {
	require.Equal(t, "short", Message("short", 5))
	long := Message(strings.Repeat("ü", 3000), MaxNote)
	require.LessOrEqual(t, len(long), MaxNote)
	require.True(t, utf8.ValidString(long))
	require.Regexp(t, `^ü+\.\.\. \(\d+ bytes more\)$`, long)
	require.LessOrEqual(t, len(Message(strings.Repeat("\x1b", 2000), MaxNote)), MaxNote, "the limit counts escaped bytes")
	var conditions []metav1.Condition
	SetCondition(&conditions, metav1.Condition{Type: "Accepted", Message: strings.Repeat("x", 1<<20)})
	require.Len(t, conditions[0].Message, MaxCondition)
}

func TestAWriterEscapesAcrossWrites(t *testing.T) {
	var out strings.Builder
	w := Writer(&out)
	for _, b := range []byte("ü\x1b[2J\u009b\U0001f4a1\n") {
		n, err := w.Write([]byte{b})
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	require.Equal(t, "ü\\u001b[2J\\u009b\U0001f4a1\n", out.String())
}

func FuzzText(f *testing.F) {
	f.Add("\x1b[31m\xff\u202e")
	f.Fuzz(func(t *testing.T, text string) {
		for _, shown := range []string{Text(text), Line(text), Message(text, 100)} {
			require.True(t, utf8.ValidString(shown))
			require.Equal(t, shown, Text(shown), "escaping twice changes nothing")
		}
		require.NotContains(t, Line(text), "\n")
		require.LessOrEqual(t, len(Message(text, 100)), 100)
	})
}
