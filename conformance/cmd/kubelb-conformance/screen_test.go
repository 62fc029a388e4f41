package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
)

var now = time.Date(2026, 12, 1, 10, 0, 0, 0, time.UTC)

// running returns a run that began some time ago, and does the same thing since then.
func running(name, family string, ago time.Duration, what string) conformance.Running {
	return conformance.Running{Case: name, Family: family, Began: now.Add(-ago), Doing: what, Since: now.Add(-ago)}
}

func TestTheLastLineSaysWhatRuns(t *testing.T) {
	runs := []conformance.Running{running("drain", "IPv4", 3*time.Second, "5 tcp flows"), running("drain", "IPv6", 7*time.Second, "Apply at g0")}
	require.Equal(t, "[4 of 54] drain IPv4 3s: 5 tcp flows | IPv6 7s: Apply at g0, for 7s", statusLine(runs, 3, 54, now))
	require.Empty(t, statusLine(nil, 3, 54, now))
	require.Equal(t, "[4 o…", cut(statusLine(runs, 3, 54, now), 5))
	require.Equal(t, "drain", cut("drain", 5))
}

func TestAPipeGetsOneLineForARunThatTakesLong(t *testing.T) {
	s := &screen{told: map[string]time.Time{}}
	run := running("drain", "IPv4", 10*time.Second, "Apply at g0")
	require.Empty(t, s.longRuns([]conformance.Running{run}, now))
	lines := s.longRuns([]conformance.Running{run}, now.Add(5*time.Second))
	require.Equal(t, []string{"running     drain                       IPv4       15s  Apply at g0, for 15s"}, lines)
	require.Empty(t, s.longRuns([]conformance.Running{run}, now.Add(6*time.Second)))
	require.Len(t, s.longRuns([]conformance.Running{run}, now.Add(66*time.Second)), 1, "and again a minute later")
	require.Empty(t, s.longRuns(nil, now.Add(67*time.Second)))
	require.Empty(t, s.told)
}

func TestTheOutputOfAPipeHasNoControlCharacters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(path)
	require.NoError(t, err)
	s := newScreen(out)
	require.False(t, s.terminal)
	stop := s.follow(&conformance.Monitor{})
	s.printf("%s\n", "passed")
	stop()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "passed\n", string(text))
}

func TestOnATerminalTheLastLineIsRemovedBeforeOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(path)
	require.NoError(t, err)
	s := &screen{out: out, terminal: true, shown: true}
	s.printf("passed\n")
	s.printf("passed\n")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "\r\x1b[Kpassed\npassed\n", string(text))
}

func TestTheCommandForOneCaseHasTheOptions(t *testing.T) {
	self := os.Args[0]
	require.Equal(t, quote(self)+" --backend=nftables --case=drain -v", flags{backend: "nftables", patience: 1, cases: "drain,tcp-echo", keepGoing: true, report: "r"}.alone("drain"))
	f := flags{backend: "./my plugin", upgrade: "/next", switchTo: "ebpf,envoy", patience: 2.5, options: map[string]string{"xdp": "native", "a": "it's"}}
	require.Equal(t, quote(self)+` --backend='./my plugin' --backend-option='a=it'\''s' --backend-option=xdp=native --upgrade-to=/next --switch-to=ebpf,envoy --patience=2.5 --case=drain -v`, f.alone("drain"))
	require.Equal(t, "''", quote(""))
	require.False(t, strings.HasPrefix(quote("$(reboot)"), "$"))
}
