package translate

import (
	"fmt"
	"strings"
	"time"
)

// The bounds of an idle timeout.
const (
	minIdleTimeout = time.Second
	maxIdleTimeout = 24 * time.Hour
	// longestIdleTimeout is the maximum number of characters.
	longestIdleTimeout = 16
)

// IdleTimeout parses an idle timeout such as 10m or 1h30m: hours, minutes and seconds. The hub's schema has the same rules for the field.
func ParseIdleTimeout(text string) (timeout time.Duration, valid bool) {
	timeout, err := time.ParseDuration(text)
	whole := strings.Trim(text, "0123456789hms") == "" && !strings.Contains(text, "ms")
	if err != nil || !whole || len(text) > longestIdleTimeout || timeout < minIdleTimeout || timeout > maxIdleTimeout {
		return 0, false
	}
	return timeout, true
}

// InvalidIdleTimeout returns the problem of an invalid idle timeout in a field or annotation.
func InvalidIdleTimeout(field, text string) Problem {
	return Problem{Reason: ReasonInvalidIdleTimeout, Field: field, Message: fmt.Sprintf("%s is %q: use 1s to 24h, in hours, minutes and seconds, such as 10m or 1h30m, or remove it", field, text)}
}
