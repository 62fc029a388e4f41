// Package plain escapes and bounds text of others before it goes into a status, an event or a terminal: names and values that tenants choose come
// back in messages, and a terminal obeys control characters.
package plain

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The greatest lengths of messages in bytes. The schema allows four times as much for a condition, and refuses the whole status if a message is
// longer. The API allows 1024 bytes for the note of an event.
const (
	MaxCondition = 8192
	MaxNote      = 1024
)

// Text escapes all characters that do not print, except newlines and tabs. So text changes no colour, no direction of writing and no title of a
// terminal.
func Text(text string) string {
	return escape(text, func(r rune) bool { return r == '\n' || r == '\t' || unicode.IsPrint(r) })
}

// Line escapes newlines and tabs as well, for text within a line.
func Line(text string) string { return escape(text, unicode.IsPrint) }

func escape(text string, isPlain func(rune) bool) string {
	hidden := func(r rune) bool { return !isPlain(r) }
	if utf8.ValidString(text) && strings.IndexFunc(text, hidden) < 0 {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case isPlain(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r) // as in JSON and YAML
		}
		i += size
	}
	return b.String()
}

// Message is Text cut to limit bytes. A cut text says at its end how many bytes are missing.
func Message(text string, limit int) string {
	text = Text(text)
	if len(text) <= limit {
		return text
	}
	const end = "... (%d bytes more)"
	kept := max(0, limit-len(fmt.Sprintf(end, len(text))))
	for kept > 0 && !utf8.RuneStart(text[kept]) {
		kept--
	}
	return text[:kept] + fmt.Sprintf(end, len(text)-kept)
}

// Note is the text as the note of an event.
func Note(text string) string { return Message(text, MaxNote) }

// NotTrue returns the condition of this type if it is False or Unknown, else nil.
func NotTrue(conditions []metav1.Condition, kind string) *metav1.Condition {
	if c := meta.FindStatusCondition(conditions, kind); c != nil && c.Status != metav1.ConditionTrue {
		return c
	}
	return nil
}

// SetCondition sets a condition, with its message cut to a length that the schema allows.
func SetCondition(conditions *[]metav1.Condition, c metav1.Condition) {
	c.Message = Message(c.Message, MaxCondition)
	meta.SetStatusCondition(conditions, c)
}
