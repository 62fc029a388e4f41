// Package phrase makes parts of messages.
package phrase

import (
	"fmt"
	"strings"
)

// named is how many of a list a message names: who reads it looks for the first, and wants to know that there are more.
const named = 5

// Few joins the first of a list and counts the rest: a message stays short however many things it speaks of.
func Few(items []string, separator string) string {
	if len(items) <= named {
		return strings.Join(items, separator)
	}
	return fmt.Sprintf("%s%sand %d more", strings.Join(items[:named], separator), separator, len(items)-named)
}
