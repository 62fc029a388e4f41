package plain

import (
	"io"
	"sync"
	"unicode/utf8"
)

// Writer returns a writer that passes on Text of what is written to it. It is safe for concurrent use.
func Writer(w io.Writer) io.Writer { return &writer{to: w} }

type writer struct {
	to io.Writer
	mu sync.Mutex // guards partial, and serialises writes
	// partial is the beginning of a character whose end has not been written yet.
	partial []byte
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := append(w.partial, p...)
	whole := len(all)
	for back := 1; back < utf8.UTFMax && back <= len(all); back++ {
		if at := len(all) - back; utf8.RuneStart(all[at]) {
			if !utf8.FullRune(all[at:]) {
				whole = at
			}
			break
		}
	}
	w.partial = append([]byte(nil), all[whole:]...)
	if _, err := io.WriteString(w.to, Text(string(all[:whole]))); err != nil {
		return 0, err
	}
	return len(p), nil
}
