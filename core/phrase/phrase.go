// Package phrase formats parts of messages.
package phrase

import (
	"fmt"
	"strings"
)

// Named is how many items of a list a message names.
const Named = 5

// Few joins the first items of a list and counts the others, so that a message stays short.
func Few(items []string, separator string) string {
	return FewOf(items[:min(Named, len(items))], len(items), separator)
}

// FewOf is Few for a list of all items, of which the caller has the first only.
func FewOf(first []string, all int, separator string) string {
	if all <= len(first) {
		return strings.Join(first, separator)
	}
	return fmt.Sprintf("%s%sand %d more", strings.Join(first, separator), separator, all-len(first))
}
