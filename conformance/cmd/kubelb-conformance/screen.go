package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance"
)

// screen prints results, and what runs: on a terminal in the last line, which is rewritten, otherwise in a line for each run that
// takes long.
type screen struct {
	out      *os.File
	terminal bool

	mu sync.Mutex // guards what follows
	// shown: the last line of the terminal says what runs.
	shown bool
	// told is when a line about a run was printed last.
	told map[string]time.Time
	// interrupt ends the suite.
	interrupt func()
}

func newScreen(out *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &screen{out: out, terminal: err == nil && os.Getenv("TERM") != "dumb", told: map[string]time.Time{}}
}

// printf prints lines.
func (s *screen) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.write(fmt.Sprintf(format, args...))
}

// write ends the suite if nobody reads its output any more.
func (s *screen) write(text string) {
	if _, err := s.out.WriteString(text); errors.Is(err, syscall.EPIPE) && s.interrupt != nil {
		s.interrupt()
	}
}

// clear removes the line that says what runs.
func (s *screen) clear() {
	if s.shown {
		s.write("\r\x1b[K")
		s.shown = false
	}
}

// interruptible returns a context that ends at a signal, or when nobody reads the output any more. A second signal ends the program at once.
func (s *screen) interruptible() context.Context {
	ctx, interrupt := context.WithCancel(context.Background())
	s.mu.Lock()
	s.interrupt = interrupt
	s.mu.Unlock()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// Otherwise the kernel ends the program before it has cleaned up if its output is closed. Sockets cause this signal, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go func() {
		got := <-signals
		signal.Reset(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		s.printf("%s: the suite ends and cleans up; a second signal ends it at once, and the next run cleans up\n", got)
		interrupt()
	}()
	return ctx
}

// Intervals between two looks at what runs, and until a pipe gets a line about a run, for the first time and again.
const (
	terminalInterval = 200 * time.Millisecond
	pipeInterval     = time.Second
	longAfter        = 15 * time.Second
	longAgain        = time.Minute
)

// follow shows what runs until stop is called.
func (s *screen) follow(m *conformance.Monitor) (stop func()) {
	interval := pipeInterval
	if s.terminal {
		interval = terminalInterval
	}
	ticker, stopped := time.NewTicker(interval), make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case now := <-ticker.C:
				s.show(m, now)
			case <-stopped:
				return
			}
		}
	})
	return func() {
		ticker.Stop()
		close(stopped)
		done.Wait()
		s.printf("")
	}
}

func (s *screen) show(m *conformance.Monitor, now time.Time) {
	runs, done, all := m.Running()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		for _, line := range s.longRuns(runs, now) {
			s.write(line + "\n")
		}
		return
	}
	s.clear()
	if line := statusLine(runs, done, all, now); line != "" {
		s.write(cut(line, s.width()-1))
		s.shown = true
	}
}

// longRuns returns a line for each run that takes long, and again after a while.
func (s *screen) longRuns(runs []conformance.Running, now time.Time) (lines []string) {
	told := map[string]time.Time{}
	for _, r := range runs {
		name := r.Case + " " + r.Family
		last, before := s.told[name]
		took := now.Sub(r.Began)
		if due := before && now.Sub(last) >= longAgain || !before && took >= longAfter; due {
			lines = append(lines, fmt.Sprintf("%-12s%-28s%-6s%8s  %s", "running", r.Case, r.Family, took.Round(time.Second), doing(r, now)))
			last, before = now, true
		}
		if before {
			told[name] = last
		}
	}
	s.told = told
	return lines
}

// statusLine says what runs.
func statusLine(runs []conformance.Running, done, all int, now time.Time) string {
	var parts []string
	for i, r := range runs {
		text := fmt.Sprintf("%s %s: %s", r.Family, now.Sub(r.Began).Round(time.Second), doing(r, now))
		if i == 0 || runs[i-1].Case != r.Case {
			text = r.Case + " " + text
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return ""
	}
	line := strings.Join(parts, " | ")
	if all > 0 {
		line = fmt.Sprintf("[%d of %d] %s", done+1, all, line)
	}
	return line
}

// doing says what a run does, and since when if that is long.
func doing(r conformance.Running, now time.Time) string {
	if since := now.Sub(r.Since); r.Doing != "" && since >= longAfter/3 {
		return fmt.Sprintf("%s, for %s", r.Doing, since.Round(time.Second))
	}
	return r.Doing
}

// width returns the number of columns of the terminal.
func (s *screen) width() int {
	if size, err := unix.IoctlGetWinsize(int(s.out.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		return int(size.Col)
	}
	return 80
}

// cut shortens a line, so that the terminal does not break it.
func cut(line string, columns int) string {
	if runes := []rune(line); len(runes) > columns {
		return string(runes[:max(0, columns-1)]) + "…"
	}
	return line
}
