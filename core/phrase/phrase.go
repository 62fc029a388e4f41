// Package phrase makes parts of messages.
package phrase

import (
	"fmt"
	"strings"
)

// Named is how many of a list a message names: who reads it looks for the first, and wants to know that there are more.
const Named = 5

// Few joins the first of a list and counts the rest: a message stays short however many things it speaks of.
func Few(items []string, separator string) string {
	return FewOf(items[:min(Named, len(items))], len(items), separator)
}

// FewOf is Few of a list whose length is all, and of which the caller has the first items only.
func FewOf(first []string, all int, separator string) string {
	if all <= len(first) {
		return strings.Join(first, separator)
	}
	return fmt.Sprintf("%s%sand %d more", strings.Join(first, separator), separator, all-len(first))
}
