// Package plain bounds text that others have written, before it stands in a status or an event, and before a terminal shows it: tenants
// choose names and values that come back in messages, and a terminal obeys what looks like an instruction to it.
package plain

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a message may have at most, in bytes. A condition's may have four times as many by the schema, which refuses the whole status of one
// that is longer; an event's note may have 1024 by the API.
const (
	MaxCondition = 8192
	MaxNote      = 1024
)

// Text escapes what does not print, but for ends of lines and tabs. What is printed is what is there: no byte order, no colour, no title of a
// window follows from it.
func Text(text string) string {
	return escape(text, func(r rune) bool { return r == '\n' || r == '\t' || unicode.IsPrint(r) })
}

// Line escapes ends of lines as well, for text that is a part of a line.
func Line(text string) string { return escape(text, unicode.IsPrint) }

func escape(text string, shown func(rune) bool) string {
	hidden := func(r rune) bool { return !shown(r) }
	if utf8.ValidString(text) && strings.IndexFunc(text, hidden) < 0 {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case shown(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r) // which is what JSON and YAML escape it to, too
		}
		i += size
	}
	return b.String()
}

// Message is Text of at most so many bytes; what is cut off is counted.
func Message(text string, most int) string {
	text = Text(text)
	if len(text) <= most {
		return text
	}
	const end = "... (%d bytes more)"
	kept := max(0, most-len(fmt.Sprintf(end, len(text))))
	for kept > 0 && !utf8.RuneStart(text[kept]) {
		kept--
	}
	return text[:kept] + fmt.Sprintf(end, len(text)-kept)
}

// Note is a message for an event.
func Note(text string) string { return Message(text, MaxNote) }

// NotTrue is the condition of the type, if there is one and it is False or Unknown; else nil.
func NotTrue(conditions []metav1.Condition, kind string) *metav1.Condition {
	if c := meta.FindStatusCondition(conditions, kind); c != nil && c.Status != metav1.ConditionTrue {
		return c
	}
	return nil
}

// SetCondition sets a condition whose message the schema takes.
func SetCondition(conditions *[]metav1.Condition, c metav1.Condition) {
	c.Message = Message(c.Message, MaxCondition)
	meta.SetStatusCondition(conditions, c)
}
