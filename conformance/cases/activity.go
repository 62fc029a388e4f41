package cases

import (
	"fmt"
	"strconv"
	"sync"
	"time"
)

// Activity says what a run does at the moment. It may be read while the run works. Its zero value is ready to use.
type Activity struct {
	mu   sync.Mutex // guards what follows
	text string
	from time.Time
}

// Doing returns what the run does, and since when.
func (a *Activity) Doing() (string, time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.text, a.from
}

func (a *Activity) set(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.text, a.from = text, time.Now()
}

// follow notes that what the run did is done, unless it does something else already.
func (a *Activity) follow(done string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.text == done {
		a.text, a.from = "checks after "+done, time.Now()
	}
}

// thousands writes a number with commas.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// count writes a number of things.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%s %s", thousands(n), thing)
}
